"""What an experiment's observations say: is the candidate better, worse, or is it not known yet.

Invariants: each question is asked in a way that stands being asked again and again, so a decision
may be taken the moment it is possible: the difference by an always-valid interval, the shares of
the arms by an always-valid test (Lindon and Malek, "Anytime-valid inference for multinomial count
data", NeurIPS 2022; a chi-square test, asked every few seconds, would cry wolf).
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import uuid_utils

from evals.confidence_sequence import Interval, Sample, difference_interval, log_evidence
from evals.records import Decision, MetricResult, Verdict
from gateway.database import now
from pipelines.champion import BASE, CHALLENGER, CHAMPION
from pipelines.observations import Observed
from pipelines.plan import Plan
from pipelines.tables import ExperimentRow

MISMATCH_ALPHA = 0.001


@dataclass(frozen=True, slots=True)
class Finding:
    """How an experiment stands.

    Attributes:
        decision: None while it goes on. `alert`: two equal arms came out different.
        result: the metric in both arms, in the metric's own unit.
        reason: why it is decided, or what is missing.
    """

    decision: Decision | None
    result: MetricResult
    observed: Observed
    reason: str


def find(experiment: ExperimentRow, observed: Observed, at: datetime) -> Finding:
    """What `observed` says at the moment `at`."""
    plan = Plan.model_validate(experiment.plan)
    baseline = Sample.of(observed.values.get(CHAMPION, ()))
    candidate = Sample.of(observed.values.get(CHALLENGER, ()))
    interval = difference_interval(baseline, candidate, plan.alpha)
    better, worse = _is_better(plan, interval), _is_worse(plan, interval)
    told = f"{_told(plan, baseline, candidate, interval)}, {_heard(observed)}"
    decision, reason = None, f"not decided yet: {told}"
    mismatch = _mismatch(plan, observed)
    if mismatch is not None:
        decision, reason = Decision.HOLD, mismatch
    elif _enough(plan, observed) and (better or worse):
        decision = Decision.PROMOTE if better else Decision.REJECT
        reason = f"the candidate is {'better' if better else 'worse'}: {told}"
        if experiment.version is None:
            decision = Decision.ALERT
            reason = (
                f"both arms are the same and yet differ; look at assignment and feedback: {told}"
            )
    else:
        ended = _ended(plan, experiment, observed, at)
        if ended is not None:
            decision, reason = Decision.HOLD, f"{ended}: {told}"
    passed = {Decision.PROMOTE: True, Decision.REJECT: False}.get(decision) if decision else None
    return Finding(
        decision, _result(plan, (baseline, candidate), interval, passed), observed, reason
    )


def verdict_of(experiment: ExperimentRow, finding: Finding) -> Verdict:
    """The verdict of a finding with a decision, with a new id."""
    if finding.decision is None:
        raise ValueError(f"experiment {experiment.experiment_id} is not decided: {finding.reason}")
    observed = finding.observed
    adapters: dict[str, Any] = {
        arm["variant"]["name"]: arm["variant"]["adapter"] or BASE for arm in experiment.arms
    }
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=adapters[CHALLENGER],
        baseline=adapters[CHAMPION],
        decision=finding.decision,
        metrics=(finding.result,),
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
            "alpha": experiment.plan["alpha"],
            "margin": experiment.plan["margin"],
        },
        created_at=now(),
    )


def _enough(plan: Plan, observed: Observed) -> bool:
    return all(
        len(observed.values.get(arm, ())) >= plan.minimum_users for arm in (CHAMPION, CHALLENGER)
    )


def _is_better(plan: Plan, interval: Interval) -> bool:
    return interval.low > plan.margin / plan.span


def _is_worse(plan: Plan, interval: Interval) -> bool:
    return interval.high < -plan.margin / plan.span


def _mismatch(plan: Plan, observed: Observed) -> str | None:
    """Whether more users came into an arm than its weight explains."""
    first, second = observed.assigned.get(CHAMPION, 0), observed.assigned.get(CHALLENGER, 0)
    share = Sample.of([1.0] * second + [0.0] * first)
    if log_evidence(share, plan.weight) < math.log(1 / MISMATCH_ALPHA):
        return None
    wanted = plan.weight * (first + second)
    return (
        f"sample ratio mismatch: {second} of {first + second} users were given the candidate, "
        f"about {wanted:.0f} were planned; what the arms say cannot be compared until it is known "
        "why (lost log records, an arm that fails, assignment changed by hand)"
    )


def _ended(plan: Plan, experiment: ExperimentRow, observed: Observed, at: datetime) -> str | None:
    if observed.users >= plan.maximum_users:
        return f"no decision with {observed.users} users (maximum_users: {plan.maximum_users})"
    hours = (at - experiment.started_at).total_seconds() / 3600
    if hours >= plan.maximum_hours:
        return (
            f"no decision within {plan.maximum_hours:g} hours (maximum_hours); "
            f"{observed.answered} of {sum(observed.assigned.values())} users gave feedback"
        )
    return None


def _told(plan: Plan, baseline: Sample, candidate: Sample, interval: Interval) -> str:
    if baseline.mean is None or candidate.mean is None:
        return f"{plan.metric}: an arm without any complete user"
    result = _result(plan, (baseline, candidate), interval, None)
    return (
        f"{plan.metric} {result.candidate:.3g} against {result.baseline:.3g}, difference "
        f"{result.delta:+.3g} ({result.ci_low:+.3g} to {result.ci_high:+.3g} "
        f"at {1 - plan.alpha:.3g})"
    )


def _heard(observed: Observed) -> str:
    parts = [
        f"{len(observed.values.get(arm, ()))} of {observed.assigned.get(arm, 0)} {arm} users"
        for arm in (CHAMPION, CHALLENGER)
    ]
    left_out = f", {observed.in_both} in both arms left out" if observed.in_both else ""
    return f"heard {' and '.join(parts)}{left_out}"


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
        name=plan.metric,
        baseline=baseline,
        candidate=candidate,
        delta=candidate - baseline if known else None,  # type: ignore[operator]
        ci_low=ends[0],
        ci_high=ends[1],
        n=int(sum(one.counts.sum() for one in arms)),
        passed=passed,
    )
