"""The gate: conditions that a candidate must meet beside the baseline, and the verdict on them.

- A *superiority* condition asks for more than `margin` of improvement, with confidence: the whole
  interval lies beyond the margin. At least one is needed for `promote`.
- A *non-inferiority* condition (a guardrail) asks that it is not worse by more than `margin`.
- `reject`: some superiority metric is worse with confidence, or some guardrail is broken with
  confidence. `hold`: something is not known well enough, or the gain is too small. `promote`: every
  condition is met. All of them must be, so promoting needs no correction for their number.
- With fewer than `minimum_n` pairs a condition decides nothing.

A value may be missing (None or NaN: its scorer failed). Where the metric is 0 or 1, a candidate
without a value counts as wrong; any other pair without both values is left out and does not count
for `minimum_n`. So is each such pair of a metric in `by_instrument`, whose missing values are its
instrument's fault (a judge that answers nonsense) and not the answer's. The reasons name such pairs
by their places, from 1.

What is left may speak for the candidate only because the rest is missing. Where it lacks values
that the baseline has in more than `MOST_LACKING` of the pairs, and more of them than the other way
round, nothing is promoted, and of a metric whose pairs are left out nothing is decided.

A metric of whole sets of rows comes as a `Measured` in place of values; without an interval it
decides nothing, and the reason says why there is none.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

import uuid_utils
from pydantic import Field, FiniteFloat, field_validator
from pydantic_core import PydanticCustomError

from evals.compare import CONFIDENCE, Measured, is_binary, paired
from evals.records import Decision, MetricResult, Verdict
from gateway.database import now
from gateway.section import Name, Section

Values = Sequence[float | None]
Measurement = tuple[Values, Values] | Measured
NAMED_PLACES = 5
MOST_LACKING = 0.05
LEAST_CONFIDENCE = 0.8


class Condition(Section):
    """One condition of a gate; in YAML, one entry of the list `gate`.

    Attributes:
        metric: what is compared.
        direction: which way is better.
        margin: improvement that is wanted (superiority) or loss that is allowed (non-inferiority),
            at least 0, in the metric's unit.
        minimum_n: pairs of values below which nothing is decided.
        relative: `margin` is a share of the baseline's mean, which is taken as known.
        confidence: of the interval, at least `LEAST_CONFIDENCE`.
    """

    metric: Name
    direction: Literal["increase", "decrease"] = "increase"
    margin: FiniteFloat = Field(0.0, ge=0)
    minimum_n: int = Field(ge=1)
    kind: Literal["superiority", "non_inferiority"] = "superiority"
    relative: bool = False
    confidence: float = Field(CONFIDENCE, lt=1)

    @field_validator("confidence")
    @classmethod
    def _sure(cls, value: float) -> float:
        if not value >= LEAST_CONFIDENCE:
            raise PydanticCustomError(
                "confidence",
                "{value}: a gate decides with a confidence of at least {least}: what is surer "
                "than that by chance is too often not so",
                {"value": value, "least": LEAST_CONFIDENCE},
            )
        return value


@dataclass(frozen=True, slots=True)
class Pairs:
    """A metric's values, ready to be compared.

    Attributes:
        total: pairs that there should be.
        wrong: places of candidates without a value, which count as wrong.
        left_out: places of pairs that are not in the values.
        lacking: pairs in which only the candidate has no value; lacked: only the baseline.
    """

    baseline: list[float]
    candidate: list[float]
    total: int
    wrong: tuple[int, ...]
    left_out: tuple[int, ...]
    lacking: int
    lacked: int

    @property
    def one_sided(self) -> bool:
        """Whether so much of the candidate alone is missing that the rest may flatter it."""
        return self.lacking > max(MOST_LACKING * self.total, self.lacked)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one condition says: `decision` is promote where it is met, and `reason` why."""

    condition: Condition
    result: MetricResult
    decision: Decision
    reason: str


def judge(
    subject: str,
    baseline: str,
    results: Mapping[str, Measurement],
    conditions: Sequence[Condition],
    evidence: Mapping[str, Any],
    by_instrument: Collection[str] = (),
) -> Verdict:
    """The verdict on `subject`, given each metric's values of baseline and candidate per case, or
    the metric as it was measured on all of them.

    Metrics without a condition are in the verdict for information.

    Args:
        by_instrument: metrics whose missing values say nothing of the answers.

    Raises: ValueError where a metric has more values on one side than on the other.
    """
    findings = [_finding(condition, results, by_instrument) for condition in conditions]
    decision = _decision(findings)
    judged = {condition.metric for condition in conditions}
    others = [
        _unjudged(name, values, name in by_instrument)
        for name, values in results.items()
        if name not in judged
    ]
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=subject,
        baseline=baseline,
        decision=decision,
        metrics=(*(finding.result for finding in findings), *others),
        reasons=_reasons(findings, decision),
        evidence=dict(evidence),
        created_at=now(),
    )


def _decision(findings: Sequence[Finding]) -> Decision:
    decisions = {finding.decision for finding in findings}
    if Decision.REJECT in decisions:
        return Decision.REJECT
    wanted = any(finding.condition.kind == "superiority" for finding in findings)
    return Decision.PROMOTE if wanted and decisions == {Decision.PROMOTE} else Decision.HOLD


def _reasons(findings: Sequence[Finding], decision: Decision) -> tuple[str, ...]:
    """The deciding ones first: those that say what the verdict says."""
    ordered = sorted(findings, key=lambda finding: finding.decision != decision)
    reasons = [finding.reason for finding in ordered]
    if not any(finding.condition.kind == "superiority" for finding in findings):
        reasons.insert(0, "no condition asks for an improvement, so nothing speaks for a promotion")
    return tuple(reasons)


def _finding(
    condition: Condition,
    results: Mapping[str, Measurement],
    by_instrument: Collection[str],
) -> Finding:
    name = condition.metric
    if name not in results:
        known = ", ".join(results) or "none"
        reason = f"{name}: was not measured (there are: {known}): not known"
        empty = MetricResult(name, None, None, None, None, None, 0, None)
        return Finding(condition, empty, Decision.HOLD, reason)
    values = results[name]
    if isinstance(values, Measured):
        return _found(condition, values)
    worst = 0.0 if condition.direction == "increase" else 1.0
    pairs = _pairs(values, None if name in by_instrument else worst, name)
    result = _compared(name, pairs, condition.confidence)
    if result.n < condition.minimum_n:
        said = f"{name}: {result.n} pairs of values, needs {condition.minimum_n}: not enough"
        return Finding(condition, result, Decision.HOLD, said + _missing_text(pairs))
    decision, passed, word = _outcome(condition, result)
    if pairs.one_sided and (decision is Decision.PROMOTE or not pairs.wrong):
        decision, passed = Decision.HOLD, None
        word = f"not known: {pairs.lacking} answers of the candidate alone have no value"
    said = f"{name}: {_figures(condition, result)}: {word}{_missing_text(pairs)}"
    return Finding(condition, replace(result, passed=passed), decision, said)


def _found(condition: Condition, measured: Measured) -> Finding:
    result, note = measured.result(condition.confidence), measured.note and f"; {measured.note}"
    if result.delta is None:
        return Finding(condition, result, Decision.HOLD, f"{result.name}: not known{note}")
    if result.n < condition.minimum_n:
        said = f"{result.name}: {result.n} rows, needs {condition.minimum_n}: not enough{note}"
        return Finding(condition, result, Decision.HOLD, said)
    decision, passed, word = _outcome(condition, result)
    said = f"{result.name}: {_figures(condition, result)}: {word}{note}"
    return Finding(condition, replace(result, passed=passed), decision, said)


def _outcome(condition: Condition, result: MetricResult) -> tuple[Decision, bool | None, str]:
    """What the interval says: the decision, whether the condition is met, and a word for it."""
    if result.ci_low is None or result.ci_high is None:
        return Decision.HOLD, None, "not known"
    low, high = result.ci_low, result.ci_high
    if condition.direction == "decrease":
        low, high = -high, -low
    bound = _bound(condition, result)
    if condition.kind == "superiority":
        if low > bound:
            return Decision.PROMOTE, True, "passed"
        if high < 0:
            return Decision.REJECT, False, "it is worse"
        if high <= bound:
            return Decision.HOLD, False, "the improvement is too small"
        return Decision.HOLD, None, "not shown"
    if low >= -bound:
        return Decision.PROMOTE, True, "passed"
    if high < -bound:
        return Decision.REJECT, False, "it is worse than allowed"
    return Decision.HOLD, None, "not shown"


def _bound(condition: Condition, result: MetricResult) -> float:
    """The margin in the metric's unit."""
    return condition.margin * (abs(result.baseline or 0.0) if condition.relative else 1.0)


def _compared(name: str, pairs: Pairs, confidence: float) -> MetricResult:
    return paired(name, pairs.baseline, pairs.candidate, confidence=confidence)


def _unjudged(name: str, values: Measurement, by_instrument: bool) -> MetricResult:
    if isinstance(values, Measured):
        return values.result()
    return _compared(name, _pairs(values, None if by_instrument else 0.0, name), CONFIDENCE)


def _pairs(values: tuple[Values, Values], worst: float | None, name: str) -> Pairs:
    """Pair up; see the module's rule for missing values. `worst` is the wrong one of 0 and 1, which
    a missing value counts as; None: it says nothing."""
    baseline, candidate = ([_known(value) for value in side] for side in values)
    if len(baseline) != len(candidate):
        raise ValueError(
            f"{name}: {len(baseline)} values of the baseline, {len(candidate)} of the candidate: "
            "every case needs one of each"
        )
    known = [value for value in (*baseline, *candidate) if value is not None]
    counts = worst is not None and bool(known) and is_binary(known)
    kept: list[tuple[float, float]] = []
    wrong, left_out = [], []
    lacking = lacked = 0
    for place, (one, other) in enumerate(zip(baseline, candidate, strict=True), 1):
        lacking += one is not None and other is None
        lacked += one is None and other is not None
        if one is not None and other is None and counts:
            wrong.append(place)
            other = worst
        if one is None or other is None:
            left_out.append(place)
        else:
            kept.append((one, other))
    sides = [one for one, _ in kept], [other for _, other in kept]
    return Pairs(*sides, len(baseline), tuple(wrong), tuple(left_out), lacking, lacked)


def _known(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(value)


def _missing_text(pairs: Pairs) -> str:
    parts = []
    if pairs.wrong:
        counted = f"{len(pairs.wrong)} of {pairs.total} answers of the candidate"
        parts.append(f"{counted} have no value and count as wrong ({_places(pairs.wrong)})")
    if pairs.left_out:
        counted = f"{len(pairs.left_out)} of {pairs.total} pairs"
        parts.append(f"{counted} have no value and are left out ({_places(pairs.left_out)})")
    return "".join(f"; {part}" for part in parts)


def _places(places: Sequence[int]) -> str:
    more = ", …" if len(places) > NAMED_PLACES else ""
    return "case " + ", ".join(map(str, places[:NAMED_PLACES])) + more


def _figures(condition: Condition, result: MetricResult) -> str:
    """As in `0.783 against 0.108, difference +0.675, 95 % interval [+0.604, +0.733], needs > …`."""
    assert result.baseline is not None  # there is at least one pair
    assert result.candidate is not None
    assert result.delta is not None
    unsigned, signed = _formats(max(abs(result.baseline), abs(result.candidate)))
    means = f"{result.candidate:{unsigned}} against {result.baseline:{unsigned}}"
    if result.ci_low is None or result.ci_high is None:
        few = " from one pair" if result.n == 1 else ""
        return f"{means}, difference {result.delta:{signed}}, no interval{few}"
    interval = f"[{result.ci_low:{signed}}, {result.ci_high:{signed}}]"
    return (
        f"{means}, difference {result.delta:{signed}}, "
        f"{100 * condition.confidence:g} % interval {interval}, needs {_needed(condition, result)}"
    )


def _needed(condition: Condition, result: MetricResult) -> str:
    more = condition.direction == "increase"
    superior = condition.kind == "superiority"
    sign = (">" if more else "<") + ("" if superior else "=")
    bound = _bound(condition, result) * (1 if more == superior else -1)
    of_baseline = f" ({100 * condition.margin:g} % of the baseline)" if condition.relative else ""
    return f"{sign} {bound + 0.0:+.3g}{of_baseline}"


def _formats(scale: float) -> tuple[str, str]:
    """Formats of a figure and of a signed one, for figures as large as `scale`."""
    if scale >= 100:
        return ".1f", "+.1f"
    if scale > 1:
        return ".2f", "+.2f"
    return (".3f", "+.3f") if scale >= 0.01 else (".3g", "+.3g")
