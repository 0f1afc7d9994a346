"""Verdicts on evaluations: requirements, the gate beside a baseline, and what is not applicable."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.evaluation_verdict import (
    LEAST_VALUES,
    beside,
    by_itself,
    interval_of,
    requirement,
    summary_of,
)
from evals.gate import Condition
from evals.records import Decision
from tests.evals.evaluated import evaluation

BINARY = Condition(metric="contains", margin=0.05, minimum_n=20)


def alone(values, *required, **more):
    found = evaluation(values, **more)
    return by_itself(found, "evaluation:x", [requirement(one) for one in required], {"a": 1})


def test_requirements_are_read_and_mistakes_are_named():
    one = requirement(" exact >= 0.8 ")
    assert (one.metric, one.least, one.bound, str(one)) == (
        "exact_match", True, 0.8, "exact_match >= 0.8"
    )  # fmt: skip
    assert not requirement("latency<=1e3").least
    for wrong in ("contains", "contains > 0.5", "contains>=x", ">=1", "charm>=1"):
        with pytest.raises(ValueError):
            requirement(wrong)


def test_without_requirements_it_is_for_information():
    verdict = alone({"contains": [1.0, 0.0] * 20, "latency": [5.0] * 40})
    assert verdict.decision is Decision.HOLD and verdict.baseline == "none"
    assert [(one.name, one.candidate, one.n, one.passed) for one in verdict.metrics] == [
        ("contains", 0.5, 40, None), ("latency", 5.0, 40, None)
    ]  # fmt: skip
    assert verdict.evidence["a"] == 1 and verdict.evidence["targets"] == {"up/model": 40}


@pytest.mark.parametrize(
    ("share", "required", "decision", "passed"),
    [
        (0.9, "contains>=0.7", Decision.HOLD, True),
        (0.5, "contains>=0.7", Decision.ALERT, False),
        (0.7, "contains>=0.7", Decision.HOLD, None),  # not known well enough either way
        (0.1, "contains<=0.3", Decision.HOLD, True),
        (0.5, "contains<=0.3", Decision.ALERT, False),
    ],
)
def test_a_requirement_is_broken_only_with_confidence(share, required, decision, passed):
    verdict = alone(
        {"contains": [1.0] * round(100 * share) + [0.0] * round(100 - 100 * share)}, required
    )
    (result,) = verdict.metrics
    assert (verdict.decision, result.passed) == (decision, passed)
    assert result.ci_low <= result.delta <= result.ci_high
    assert verdict.reasons[0].startswith(str(requirement(required)))


def test_too_few_values_decide_nothing():
    verdict = alone({"contains": [0.0] * (LEAST_VALUES - 1)}, "contains>=0.9")
    assert verdict.decision is Decision.HOLD and "not enough" in verdict.reasons[0]
    assert alone({"contains": [0.0] * LEAST_VALUES}, "contains>=0.9").decision is Decision.ALERT


def test_a_metric_that_few_carry_is_not_applicable_and_decides_nothing():
    values = {"rouge": [0.0] * 10 + [None] * 90}
    verdict = alone(values, "rouge>=0.9", carrying=10)
    assert verdict.decision is Decision.HOLD
    assert (verdict.metrics[0].candidate, verdict.metrics[0].n) == (None, 0)
    assert verdict.evidence["not_applicable"] == ["rouge"]
    assert any(
        "rouge: not_applicable: 10 of 100 answers carry what it needs (reference)" in reason
        for reason in verdict.reasons
    )


def test_failed_scores_are_counted_with_their_reason():
    found = evaluation({"judge": [1.0] * 30 + [None] * 5}, reason="the judge: over budget")
    assert (summary_of(found, "judge").failed, summary_of(found, "judge").n) == (5, 30)
    assert any("5 of 35 answers got no value (the judge: over budget)" in reason
               for reason in alone({"judge": [1.0] * 30 + [None] * 5},
                                   reason="the judge: over budget").reasons)  # fmt: skip


@given(st.lists(st.floats(0, 1), max_size=50))
@settings(deadline=None)
def test_the_interval_holds_the_mean(values):
    low, high = interval_of(values)
    if len(values) > 1:
        assert low is not None and high is not None
        mean = sum(values) / len(values)
        assert low - 1e-9 <= mean <= high + 1e-9
    elif not values:
        assert (low, high) == (None, None)


def test_the_interval_covers_as_often_as_it_says():
    rng, covered = random.Random(3), 0
    for _ in range(400):
        values = [float(rng.random() < 0.3) for _ in range(60)]
        low, high = interval_of(values)
        assert low is not None and high is not None
        covered += low <= 0.3 <= high
    assert covered >= 0.92 * 400


def test_beside_a_baseline_the_gate_decides():
    good, bad = evaluation({"contains": [1.0] * 50}), evaluation({"contains": [0.0, 1.0] * 25})
    up = beside(("prompt:a@2", good), ("prompt:a@1", bad), [BINARY], {})
    down = beside(("prompt:a@1", bad), ("prompt:a@2", good), [BINARY], {})
    same = beside(("prompt:a@2", bad), ("prompt:a@1", bad), [BINARY], {})
    assert [one.decision for one in (up, down, same)] == [
        Decision.PROMOTE, Decision.REJECT, Decision.HOLD
    ]  # fmt: skip
    assert (up.subject, up.baseline) == ("prompt:a@2", "prompt:a@1")


def test_a_gate_does_not_decide_by_what_is_not_applicable():
    good = evaluation({"rouge": [1.0] * 50}, carrying=5)
    bad = evaluation({"rouge": [0.0] * 50})
    verdict = beside(("a", good), ("b", bad), [Condition(metric="rouge", minimum_n=5)], {})
    assert verdict.decision is Decision.HOLD
    assert any("not_applicable" in reason for reason in verdict.reasons)


def test_a_gate_may_call_a_metric_by_any_of_its_names():
    good, bad = evaluation({"exact_match": [1.0] * 50}), evaluation({"exact_match": [0.0] * 50})
    condition = Condition(metric="exact", minimum_n=20)
    assert beside(("a", good), ("b", bad), [condition], {}).decision is Decision.PROMOTE
