"""The verdict on an evaluation, and the summary of each of its metrics.

Beside a baseline the prompt's gate decides (`beside`). By itself an evaluation never promotes
anything: it is `hold`, for information, and `alert` where a requirement (`groundedness >= 0.8`) is
broken with confidence: the whole interval of the mean lies on the wrong side. Either way a metric
that too few answers carry what is needed for is not applicable: it decides nothing, and the verdict
says so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean
from typing import Any

import uuid_utils

from evals.compare import CONFIDENCE, is_binary, student, wilson
from evals.evaluation import Coverage, Evaluation
from evals.gate import Condition, judge
from evals.metrics import LACKING, LEAST_COVERAGE, by_instrument, canonical, metric_named
from evals.records import Decision, MetricResult, Verdict
from gateway.database import now

SUBJECT = "evaluation:"
NOTHING = "none"  # the baseline of an evaluation by itself
LEAST_VALUES = 20  # below which a requirement decides nothing
_FORM = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the mean of a metric has to be: `least`, at least `bound`, else at most."""

    metric: str
    least: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.least else '<='} {self.bound:g}"

    @property
    def condition(self) -> Condition:
        """As a gate asks for it, where it matters who judges."""
        return Condition(metric=self.metric, minimum_n=LEAST_VALUES)


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric of an evaluation.

    Attributes:
        mean: of the cases that have a value; low, high: its 95 % interval; None: not known.
        n: cases with a value.
        failed: answers that carry what is needed and got no value; `reason` is the first one's.
    """

    name: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    coverage: Coverage
    failed: int
    reason: str | None

    @property
    def applicable(self) -> bool:
        """Whether enough answers carry what it needs."""
        return self.coverage.applicable

    @property
    def covered(self) -> str:
        """In words, why it is not applicable."""
        count = f"{self.coverage.carrying} of {self.coverage.total} answers carry what it needs"
        needs = ", ".join(metric_named(self.name).needs)
        return (
            f"{self.name}: not_applicable: {count}{f' ({needs})' if needs else ''}, "
            f"at least {100 * LEAST_COVERAGE:g} % are wanted"
        )


def requirement(text: str) -> Requirement:
    """Of `METRIC >= NUMBER` or `METRIC <= NUMBER`. Raises ValueError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r}: METRIC>=NUMBER or METRIC<=NUMBER is wanted")
    return Requirement(metric_named(found[1]).name, found[2] == ">=", float(found[3]))


def summary_of(evaluation: Evaluation, metric: str) -> Summary:
    """How a metric came out."""
    coverage = evaluation.coverage[metric]
    values = evaluation.known(metric) if coverage.applicable else []
    low, high = interval_of(values)
    missing = [
        score.reason or "no reason"
        for scores in evaluation.scores[metric]
        for score in scores
        if score.value is None
        and score.case_id not in evaluation.lost
        and score.reason not in LACKING.values()
    ]
    return Summary(
        metric,
        fmean(values) if values else None,
        low,
        high,
        len(values),
        coverage,
        len(missing),
        missing[0] if missing else None,
    )


def interval_of(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of their mean: Wilson's for zeros and ones, else Student's."""
    if not values:
        return None, None
    if is_binary(values):
        quantile = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
        return wilson(round(sum(values)), len(values), quantile)
    return student([0.0] * len(values), values)


def by_itself(
    evaluation: Evaluation,
    subject: str,
    requirements: Sequence[Requirement],
    evidence: Mapping[str, Any],
) -> Verdict:
    """`alert` where a requirement is broken, else `hold`."""
    summaries = {name: summary_of(evaluation, name) for name in evaluation.scores}
    wanted = {one.metric: one for one in requirements}
    results: list[MetricResult] = []
    broken: list[str] = []
    known: list[str] = []
    for name, summary in summaries.items():
        result, reason = _held_to(summary, wanted.get(name))
        results.append(result)
        if reason is not None:
            (broken if result.passed is False else known).append(reason)
    reasons = [*broken, *known]
    if not requirements:
        reasons.append("for information: nothing was required of it")
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=subject,
        baseline=", ".join(map(str, requirements))[:256] or NOTHING,
        decision=Decision.ALERT if broken else Decision.HOLD,
        metrics=tuple(results),
        reasons=(*reasons, *_also(summaries.values())),
        evidence={**evidence, **_figures(evaluation)},
        created_at=now(),
    )


def beside(
    candidate: tuple[str, Evaluation],
    baseline: tuple[str, Evaluation],
    conditions: Sequence[Condition],
    evidence: Mapping[str, Any],
) -> Verdict:
    """The gate's verdict on the candidate, each given with its subject."""
    (subject, found), (beside_what, base) = candidate, baseline
    results = {}
    for name in found.scores:
        pair = base.values(name), found.values(name)
        known = base.coverage[name].applicable and found.coverage[name].applicable
        results[name] = pair if known else ([], [])
    named = [one.model_copy(update={"metric": canonical(one.metric)}) for one in conditions]
    figures = {**evidence, **_figures(found)}
    verdict = judge(subject, beside_what, results, named, figures, by_instrument(results))
    summaries = [summary_of(found, name) for name in found.scores]
    return replace(verdict, reasons=(*verdict.reasons, *_also(summaries)))


def _held_to(summary: Summary, wanted: Requirement | None) -> tuple[MetricResult, str | None]:
    """A metric's result, whose interval is around its distance from what is required."""
    empty = MetricResult(summary.name, None, summary.mean, None, None, None, summary.n, None)
    if wanted is None:
        return empty, None
    bound = wanted.bound
    if summary.mean is None or summary.low is None or summary.high is None:
        return replace(empty, baseline=bound), f"{wanted}: not known"
    low, high = summary.low - bound, summary.high - bound
    figures = f"{wanted}: {summary.mean:.4g} [{summary.low:.4g}, {summary.high:.4g}]"
    kept, lost = (low >= 0, high < 0) if wanted.least else (high <= 0, low > 0)
    passed = True if kept else False if lost else None
    if summary.n < LEAST_VALUES:
        passed, word = None, f"{summary.n} values, needs {LEAST_VALUES}: not enough"
    else:
        word = {True: "kept", False: "broken", None: "not shown"}[passed]
    delta = summary.mean - bound
    result = MetricResult(summary.name, bound, summary.mean, delta, low, high, summary.n, passed)
    return result, f"{figures}: {word}"


def _also(summaries: Any) -> list[str]:
    """What a reader has to know beside the decision."""
    said = [one.covered for one in summaries if not one.applicable]
    for one in summaries:
        if one.failed:
            count = f"{one.failed} of {one.coverage.carrying} answers got no value"
            said.append(f"{one.name}: {count} ({one.reason or 'no reason'})")
    return said


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    errors = sum(one.error is not None for answers in evaluation.answers for one in answers)
    return {
        "cases": len(evaluation.cases),
        "failed_answers": errors,
        "coverage": {name: one.share for name, one in evaluation.coverage.items()},
        "not_applicable": [n for n, one in evaluation.coverage.items() if not one.applicable],
        "targets": evaluation.targets,
        "seconds": round(evaluation.seconds, 2),
    }
