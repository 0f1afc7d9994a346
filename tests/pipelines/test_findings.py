"""What an experiment finds in what was observed, and which plans can be carried out."""

from datetime import timedelta
from typing import Any

import pytest

from evals.records import Decision
from gateway.configuration import ConfigurationError
from gateway.database import now
from pipelines.findings import find, verdict_of
from pipelines.plan import load_plan, parse_plan
from pipelines.tables import ExperimentRow
from tests.pipelines.lifecycle import ALIAS, METRICS, adapter_name, plan
from tests.pipelines.observed_users import BAD, GOOD, observed


def row(version: str | None = "1", **changes: Any) -> ExperimentRow:
    """A running experiment that is in no database."""
    arms = [
        {"variant": {"name": "champion", "adapter": None}, "weight": 0.5},
        {"variant": {"name": "challenger", "adapter": adapter_name("1")}, "weight": 0.5},
    ]
    return ExperimentRow(
        experiment_id="0192f0c1-0000-7000-8000-000000000000",
        alias=ALIAS,
        name=ALIAS,
        version=version,
        state="running",
        arms=arms,
        plan=plan(**changes).model_dump(mode="json"),
        started_at=now(),
    )


@pytest.mark.parametrize(
    ("given", "decision", "says"),
    [
        (observed([], []), None, "an arm without any complete user"),
        (observed(BAD[:4], GOOD[:4]), None, "not decided yet"),
        (observed(BAD, GOOD), Decision.PROMOTE, "the candidate is better: helpful 0.9 against"),
        (observed(GOOD, BAD), Decision.REJECT, "the candidate is worse"),
        (observed(GOOD, GOOD), None, "not decided yet"),
        (observed(GOOD * 7, GOOD * 7), Decision.HOLD, "no decision with 420 users"),
        (
            observed(BAD, GOOD, assigned={"champion": 300, "challenger": 30}),
            Decision.HOLD,
            "sample ratio mismatch: 30 of 330 users were given the candidate, about 165",
        ),
    ],
    ids=["nobody", "too few", "better", "worse", "equal", "enough", "mismatch"],
)
def test_what_is_decided(given, decision, says):
    finding = find(row(), given, now())
    assert finding.decision is decision
    assert says in finding.reason
    if decision is None:
        with pytest.raises(ValueError, match="not decided"):
            verdict_of(row(), finding, {"champion": "base", "challenger": adapter_name("1")})


def test_minimum_users_are_of_each_arm():
    assert find(row(minimum_users=30), observed(BAD, GOOD), now()).decision is Decision.PROMOTE
    assert find(row(minimum_users=31), observed(BAD, GOOD), now()).decision is None
    assert find(row(minimum_users=20), observed(BAD, GOOD[:19]), now()).decision is None


def test_a_margin_asks_for_more():
    assert find(row(margin=0.3), observed(BAD, GOOD), now()).decision is Decision.PROMOTE
    assert find(row(margin=0.9), observed(BAD, GOOD), now()).decision is None
    assert find(row(margin=0.9), observed(GOOD, BAD), now()).decision is None


def test_shares_as_planned_are_no_mismatch():
    uneven = row(weight=0.1)
    assigned = {"champion": 903, "challenger": 97}
    assert find(uneven, observed([1.0], [1.0], assigned=assigned), now()).decision is None
    finding = find(row(), observed([1.0], [1.0], assigned=assigned), now())
    assert finding.decision is Decision.HOLD


def test_feedback_that_never_comes_ends_at_the_hours():
    running = row(maximum_hours=2)
    nothing = observed([], [], assigned={"champion": 20, "challenger": 19}, answered=3)
    assert find(running, nothing, now() + timedelta(hours=1.9)).decision is None
    finding = find(running, nothing, now() + timedelta(hours=2.1))
    assert finding.decision is Decision.HOLD
    assert "no decision within 2 hours" in finding.reason
    assert "3 of 39 users gave feedback" in finding.reason


def test_results_are_in_the_metrics_own_unit_and_direction():
    rating: Any = find(row(metric="rating"), observed([0.25] * 30, [0.75] * 30), now()).result
    assert (rating.baseline, rating.candidate, rating.delta) == (2.0, 4.0, 2.0)
    assert rating.ci_low < 2.0 < rating.ci_high
    running = row(metric="seconds")
    scale = plan("seconds")
    slow, quick = ([float(scale.scaled(value) or 0)] * 30 for value in (9.0, 2.0))
    faster: Any = find(running, observed(slow, quick), now())
    assert faster.decision is Decision.PROMOTE
    assert faster.result.baseline == pytest.approx(9.0)
    assert faster.result.delta == pytest.approx(-7.0)
    assert faster.result.ci_low < -7.0 < faster.result.ci_high < 0
    assert find(running, observed(quick, slow), now()).decision is Decision.REJECT


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metric": "nothing"}, "no metric 'nothing' is declared"),
        ({"metric": "tone"}, "tone is categorical"),
        ({"metric": "solved"}, "solved is given to episodes"),
        ({"metric": "open"}, "open needs a minimum and a maximum"),
        ({"metric": "helpful", "margin": 1}, "not below the span"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(given, says):
    with pytest.raises(ConfigurationError, match=says):
        parse_plan(given).settled(METRICS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "metric: Field required"),
        ({"metric": "helpful", "guard": []}, "guard: Extra inputs"),
        ({"metric": "helpful", "weight": 1}, "weight: Input should be less than 1"),
        ({"metric": "helpful", "maximum_users": 15}, "at least twice minimum_users"),
        ({"metric": "rating", "minimum": 3, "maximum": 2}, "minimum must be below maximum"),
        ("helpful", "plan: Input should be a valid dictionary"),
    ],
)
def test_plans_with_mistakes_name_the_key(given, says):
    with pytest.raises(ConfigurationError, match=says):
        parse_plan(given)


def test_a_plan_is_read_from_a_file(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("metric: open\nmaximum: 4\nweight: 0.3\n")
    settled = load_plan(file).settled(METRICS)
    assert (settled.minimum, settled.maximum, settled.optimize) == (0, 4, "max")
    assert settled.scaled(1) == 0.25 and settled.unscaled(0.25) == 1
    assert settled.scaled("1") is None and settled.scaled(5) is None
    with pytest.raises(ConfigurationError, match="not a plan that can be read"):
        load_plan(tmp_path / "none.yaml")
