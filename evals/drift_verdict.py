"""What a look found, as a Verdict: a metric for each signal and each service level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import uuid_utils

from evals.comparison import Comparison, Unmeasured
from evals.records import Decision, MetricResult, Verdict
from evals.reference import NoReference, Reference, ReferenceDamaged
from evals.shifts import Shift
from evals.signals import Kind
from evals.slas import Kept
from evals.spending import LEVEL
from evals.windows import Traffic

# In a verdict's evidence: the end of a window whose signals were compared, or of one whose service
# levels alone were judged; microseconds since the epoch.
UNTIL, JUDGED = "until", "judged_until"
NONE, DAMAGED = "none", "damaged"  # baselines of looks that had nothing to compare with


@dataclass(frozen=True, slots=True)
class Looked:
    """A look that measured.

    Attributes:
        level: the chance of a false alarm that it takes; 0: signals were not measured.
        missing: why there are no embeddings, or None.
        few: why users are too few for signals, or None.
        notes: what else there is to say.
        facts: further evidence.
    """

    traffic: Traffic
    reference: Reference
    comparison: Comparison
    level: float
    found: Sequence[Shift | Unmeasured]
    kept: Sequence[Kept]
    missing: str | None
    few: str | None = None
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shifts(self) -> list[Shift]:
        """The signals that could be measured."""
        return [one for one in self.found if isinstance(one, Shift)]

    def verdict(self, moment: datetime) -> Verdict:
        """With a new id."""
        drifted = sorted((one for one in self.shifts if one.drifted), key=lambda one: one.chance)
        broken = _broken(self.kept)
        alert = bool(drifted or broken)
        kinds = self.comparison.by_name
        reasons = [told(one, kinds[one.signal].kind) for one in drifted] + broken
        if not alert and self.few is None:
            reasons.append(self._nothing())
        return Verdict(
            verdict_id=str(uuid_utils.uuid7()),
            subject=self.traffic.subject,
            baseline=self.reference.name,
            decision=Decision.ALERT if alert else Decision.HOLD,
            metrics=tuple(_metrics(self.found, self.kept)),
            reasons=tuple(reasons + self._unknown()),
            evidence=self._evidence(),
            created_at=moment,
        )

    def _nothing(self) -> str:
        rows = len(self.comparison.window), len(self.comparison.reference)
        return (
            f"nothing found: {len(self.shifts)} signals of {rows[0]} requests beside {rows[1]} of "
            f"the reference (chance of a false alarm: {self.level:.2g})"
        )

    def _unknown(self) -> list[str]:
        """What could not be told, and why."""
        said = []
        if self.few is not None:
            said.append(f"signals not measured: {self.few}")
        elif self.level <= 0:
            said.append("signals not measured: this month's budget of false alarms is used up")
        if self.missing is not None:
            said.append(f"embeddings not compared: {self.missing}")
        names: dict[str, list[str]] = {}
        for one in self.found:
            if isinstance(one, Unmeasured):
                names.setdefault(one.reason, []).append(one.signal)
        said += [f"{', '.join(of)}: could not be measured: {why}" for why, of in names.items()]
        return [*said, *_unjudged(self.kept), *self.notes]

    def _evidence(self) -> dict[str, Any]:
        window = self.comparison.window
        return {
            **self.facts,
            LEVEL: self.level,
            UNTIL: int(window["ts"].iloc[-1]),
            "since": int(window["ts"].iloc[0]),
            "window_rows": len(window),
            "reference_rows": len(self.comparison.reference),
            "reference_sha256": self.reference.sha256,
            "reference_pinned_at": self.reference.pinned_at,
            "prompt": self.traffic.prompt,
            "prompt_version": self.traffic.version,
            "model": self.traffic.model,
            "tenant": self.traffic.tenant,
            "seed": self.comparison.seed,
            "scores": {
                one.signal: {
                    "score": one.score,
                    "limit": one.limit,
                    "chance": one.chance,
                    "reference_rows": one.reference_rows,
                    "window_rows": one.window_rows,
                }
                for one in self.shifts
            },
        }


def held(
    traffic: Traffic, baseline: str, reason: str, moment: datetime, kept: Sequence[Kept] = (),
    until: int = 0,
) -> Verdict:  # fmt: skip
    """The verdict of a look that could not compare anything, for `reason`; an alert if a service
    level is broken all the same. `until`: the end of the window that those were judged on."""
    broken = _broken(kept)
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=traffic.subject,
        baseline=baseline,
        decision=Decision.ALERT if broken else Decision.HOLD,
        metrics=tuple(_metrics((), kept)),
        reasons=(*broken, reason, *_unjudged(kept)),
        evidence={
            **({JUDGED: until} if until else {}),
            "prompt": traffic.prompt,
            "prompt_version": traffic.version,
            "model": traffic.model,
            "tenant": traffic.tenant,
        },
        created_at=moment,
    )


def baseline_without(error: NoReference | ReferenceDamaged) -> str:
    """The baseline of a look that has no reference, for `error`."""
    return NONE if isinstance(error, NoReference) else DAMAGED


def _broken(kept: Sequence[Kept]) -> list[str]:
    return [f"{one.sla.name}: broken: {one.reason}" for one in kept if one.passed is False]


def _unjudged(kept: Sequence[Kept]) -> list[str]:
    return [
        f"{one.sla.name}: {'erred' if one.erred else 'not judged'}: {one.reason}"
        for one in kept
        if one.passed is None
    ]


def told(shift: Shift, kind: Kind) -> str:
    """A shift in words."""
    chance = f"chance without drift {shift.chance:.1g}"
    rows = f"{shift.window_rows} rows beside {shift.reference_rows}"
    if kind is Kind.TEXT:
        said = f"a classifier tells window from reference: area under its curve {shift.score:.3f}"
    elif kind is Kind.VECTORS:
        said = f"the means lie {shift.score:.3f} standard deviations apart"
    elif kind is Kind.NUMBER:
        said = (
            f"mean {shift.candidate:.4g} against {shift.baseline:.4g}, distance of the "
            f"distributions {shift.score:.3f}"
        )
    elif kind is Kind.CONCEPT:
        said = f"{shift.candidate:.4f} against {shift.baseline:.4f}"
    else:
        what = {Kind.UNLIKE: "rows unlike the reference", Kind.LABEL: f"share of {shift.detail!r}"}
        name = what.get(kind, "share")
        said = f"{name} {shift.candidate:.3f} against {shift.baseline:.3f}"
    return f"{shift.signal}: {said} (limit {shift.limit:.3f}; {chance}; {rows})"


def _metrics(found: Sequence[Shift | Unmeasured], kept: Sequence[Kept]) -> list[MetricResult]:
    metrics = []
    for one in found:
        if isinstance(one, Unmeasured):
            metrics.append(MetricResult(one.signal, None, None, None, None, None, 0, None))
            continue
        metrics.append(
            MetricResult(
                name=one.signal,
                baseline=one.baseline,
                candidate=one.candidate,
                delta=one.candidate - one.baseline,
                ci_low=one.low,
                ci_high=one.high,
                n=one.window_rows,
                passed=not one.drifted,
            )
        )
    for level in kept:
        values = (None, level.value, None, None, None)
        metrics.append(MetricResult(level.sla.name, *values, level.rows, level.passed))
    return metrics
