"""What an experiment's observations say: is the candidate better, worse, or is it not known yet.

Invariants: each question is asked in a way that stands being asked again and again, so a decision
may be taken the moment it is possible: the difference by an always-valid interval, the shares of
the arms by an always-valid test (`evals.sample_ratio`; a chi-square test, asked every few seconds,
would cry wolf).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import uuid_utils

from evals.confidence_sequence import Interval, Sample, difference_interval
from evals.records import Decision, MetricResult, Verdict
from evals.sample_ratio import is_mismatch
from gateway.database import now
from pipelines.champion import CHALLENGER, CHAMPION
from pipelines.guardrails import Guardrail
from pipelines.observations import Observed
from pipelines.plan import Plan
from pipelines.tables import ExperimentRow


@dataclass(frozen=True, slots=True)
class Finding:
    """How an experiment stands.

    Attributes:
        decision: None while it goes on. `alert`: two equal arms came out different.
        result: the metric in both arms, in the metric's own unit.
        reason: why it is decided, or what is missing.
        guards: the guardrails' metrics; `passed` is False of one that is broken.
    """

    decision: Decision | None
    result: MetricResult
    observed: Observed
    reason: str
    guards: tuple[MetricResult, ...] = ()


def find(experiment: ExperimentRow, observed: Observed, at: datetime) -> Finding:
    """What `observed` says at the moment `at`."""
    plan = Plan.model_validate(experiment.plan)
    baseline = Sample.of(observed.values.get(CHAMPION, ()))
    candidate = Sample.of(observed.values.get(CHALLENGER, ()))
    interval = difference_interval(baseline, candidate, plan.alpha)
    told = f"{_told(plan, baseline, candidate, interval)}, {_heard(observed)}"
    guards = [_guarded(plan, one, observed) for one in plan.guardrails]
    broken = [said for result, said in guards if result.passed is False]
    better = _enough(plan, observed) and interval.low > plan.margin / plan.span
    worse = _enough(plan, observed) and interval.high < -plan.margin / plan.span
    decision, reason = None, f"not decided yet: {told}"
    mismatch, ended = _mismatch(plan, observed), _ended(plan, experiment, observed, at)
    if broken:
        decision, reason = Decision.REJECT, f"{broken[0]}; {told}"
    elif mismatch is not None:
        decision, reason = Decision.HOLD, mismatch
    elif worse:
        decision, reason = Decision.REJECT, f"the candidate is worse: {told}"
    elif better and plan.watches is None:  # else it has won already
        decision, reason = Decision.PROMOTE, f"the candidate is better: {told}"
    elif ended is not None:
        decision, reason = Decision.HOLD, f"{ended}: {told}"
    if experiment.version is None and decision in (Decision.PROMOTE, Decision.REJECT):
        decision = Decision.ALERT
        reason = f"both arms are the same and yet differ; look at assignment and feedback: {reason}"
    passed = True if better else False if worse else None
    if decision in (None, Decision.ALERT):
        passed = None
    result = _result(plan, (baseline, candidate), interval, passed)
    return Finding(decision, result, observed, reason, tuple(result for result, _ in guards))


def overdue(experiment: ExperimentRow, at: datetime) -> bool:
    """Whether it is as old as its plan lets it become."""
    age: timedelta = at - experiment.started_at
    return age >= timedelta(hours=experiment.plan["maximum_hours"])


def verdict_of(experiment: ExperimentRow, finding: Finding, subjects: Mapping[str, str]) -> Verdict:
    """The verdict of a finding with a decision, with a new id. `subjects`: what each arm is."""
    if finding.decision is None:
        raise ValueError(f"experiment {experiment.experiment_id} is not decided: {finding.reason}")
    observed = finding.observed
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=subjects[CHALLENGER],
        baseline=subjects[CHAMPION],
        decision=finding.decision,
        metrics=(finding.result, *finding.guards),
        reasons=(finding.reason,),
        evidence={
            "experiment_id": experiment.experiment_id,
            "alias": experiment.alias,
            "name": experiment.name,
            "version": experiment.version,
            "users": {arm: len(values) for arm, values in observed.values.items()},
            "assigned": dict(observed.assigned),
            "in_both": observed.in_both,
            "unusable": observed.unusable,
            "late": observed.late,
            "alpha": experiment.plan["alpha"],
            "margin": experiment.plan["margin"],
        },
        created_at=now(),
    )


def _enough(plan: Plan, observed: Observed) -> bool:
    return all(
        len(observed.values.get(arm, ())) >= plan.minimum_users for arm in (CHAMPION, CHALLENGER)
    )


def _guarded(plan: Plan, guardrail: Guardrail, observed: Observed) -> tuple[MetricResult, str]:
    """A guardrail in both arms, and in words. It is broken as soon as that is certain, however few
    users there were; the chance of a false alarm is at most `alpha` over all guardrails."""
    values = observed.guarded.get(guardrail.metric, {})
    first, second = (Sample.of(values.get(arm, ())) for arm in (CHAMPION, CHALLENGER))
    span, alpha = guardrail.span, plan.alpha / len(plan.guardrails)
    interval = difference_interval(first, second, alpha)
    baseline, candidate = (None if one.mean is None else one.mean * span for one in (first, second))
    known = baseline is not None and candidate is not None
    delta = candidate - baseline if known else None  # type: ignore[operator]
    low, high = interval.low * span, interval.high * span
    passed = False if low > guardrail.margin else True if high <= guardrail.margin else None
    result = MetricResult(
        name=guardrail.metric,
        baseline=baseline,
        candidate=candidate,
        delta=delta,
        ci_low=low,
        ci_high=high,
        n=int(first.counts.sum() + second.counts.sum()),
        passed=passed,
    )
    if not known:
        return result, f"guardrail {guardrail.metric}: an arm without any request"
    return result, (
        f"guardrail {guardrail.metric} is broken: {candidate:.3g} against {baseline:.3g}, "
        f"difference {delta:+.3g} ({low:+.3g} to {high:+.3g} at {1 - alpha:.3g}), allowed is "
        f"{guardrail.margin:g}"
    )


def _mismatch(plan: Plan, observed: Observed) -> str | None:
    """Whether more users came into an arm than its weight explains."""
    first, second = observed.assigned.get(CHAMPION, 0), observed.assigned.get(CHALLENGER, 0)
    if not is_mismatch(second, first + second, plan.weight):
        return None
    wanted = plan.weight * (first + second)
    return (
        f"sample ratio mismatch: {second} of {first + second} users were given the candidate, "
        f"about {wanted:.0f} were planned; what the arms say cannot be compared until it is known "
        "why (lost log records, an arm that fails, assignment changed by hand)"
    )


def _ended(plan: Plan, experiment: ExperimentRow, observed: Observed, at: datetime) -> str | None:
    undecided = "no decision" if plan.watches is None else "nothing found against the candidate"
    if observed.users >= plan.maximum_users:
        return f"{undecided} with {observed.users} users (maximum_users: {plan.maximum_users})"
    if overdue(experiment, at):
        return (
            f"{undecided} within {plan.maximum_hours:g} hours (maximum_hours); "
            f"{observed.answered} of {sum(observed.assigned.values())} users gave feedback"
        )
    return None


def _told(plan: Plan, baseline: Sample, candidate: Sample, interval: Interval) -> str:
    if baseline.mean is None or candidate.mean is None:
        return f"{plan.measured}: an arm without any complete user"
    result = _result(plan, (baseline, candidate), interval, None)
    return (
        f"{plan.measured} {result.candidate:.3g} against {result.baseline:.3g}, difference "
        f"{result.delta:+.3g} ({result.ci_low:+.3g} to {result.ci_high:+.3g} "
        f"at {1 - plan.alpha:.3g})"
    )


def _heard(observed: Observed) -> str:
    parts = [
        f"{len(observed.values.get(arm, ()))} of {observed.assigned.get(arm, 0)} {arm} users"
        for arm in (CHAMPION, CHALLENGER)
    ]
    left_out = f", {observed.in_both} in both arms left out" if observed.in_both else ""
    late = f", feedback of {observed.late} requests came too late" if observed.late else ""
    return f"heard {' and '.join(parts)}{left_out}{late}"


def _result(
    plan: Plan, arms: tuple[Sample, Sample], interval: Interval, passed: bool | None
) -> MetricResult:
    """In the metric's unit and direction: where less is better, a good difference is negative."""
    baseline, candidate = (None if one.mean is None else plan.unscaled(one.mean) for one in arms)
    ends = [interval.low * plan.span, interval.high * plan.span]
    if plan.optimize == "min":
        ends = [-ends[1], -ends[0]]
    known = baseline is not None and candidate is not None
    return MetricResult(
        name=plan.measured,
        baseline=baseline,
        candidate=candidate,
        delta=candidate - baseline if known else None,  # type: ignore[operator]
        ci_low=ends[0],
        ci_high=ends[1],
        n=int(sum(one.counts.sum() for one in arms)),
        passed=passed,
    )
