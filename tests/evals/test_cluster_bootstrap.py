"""Intervals of a classifier's metrics hold the truth as often as they say, where days differ; and
where there is too little to say anything, they say that."""

from time import perf_counter

import numpy as np
import pytest

from evals.classification import Rows, auc, brier, calibration_error
from evals.cluster_bootstrap import Resamples
from evals.compare import Measured
from evals.gate import Condition, judge
from evals.records import Decision

METRICS = {"auc": auc, "brier": brier, "calibration_error": calibration_error}


def flights(days, per_day, seed):
    """Labels, days, and two models' probabilities: only the candidate knows of the day's weather,
    and it is a little too sure of it."""
    draw = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), per_day)
    own, weather = draw.normal(size=days * per_day), draw.normal(size=days)[day]
    labels = draw.random(days * per_day) < _chance(-1.2 + 0.8 * own + 0.8 * weather)
    seen = weather + draw.normal(0, 0.5, size=days)[day]
    return labels, day, _chance(-1.1 + 0.7 * own), _chance(-1.2 + 0.8 * own + 0.8 * seen)


def _chance(logit):
    return 1 / (1 + np.exp(-logit))


def compared(given, metric, seed=0, draws=400):
    labels, day, baseline, candidate = given
    rows = Rows.of(labels, day)
    resamples = Resamples.of(rows, seed=seed, draws=draws)
    function = METRICS[metric]
    return resamples.measured(metric, function(rows, baseline), function(rows, candidate))


@pytest.mark.parametrize("metric", METRICS)
def test_coverage_where_days_differ(metric):
    """By simulation, with 30 days of 60 flights: 92 to 96 % hold the difference in the long run.

    Were flights drawn one by one, 64 % would (74 % of the calibration error); see the test below.
    """
    labels, day, *models = flights(10_000, 60, 0)
    truth = compared((labels, np.zeros(len(day)), *models), metric).result().delta
    rounds, covered = 400, 0
    for number in range(rounds):
        result = compared(flights(30, 60, number + 1), metric, number).result()
        covered += result.ci_low <= truth <= result.ci_high
    assert covered / rounds > 0.88  # 0.92 less 3 standard errors (0.04)


def test_flights_drawn_one_by_one_would_be_far_too_sure():
    labels, day, baseline, candidate = flights(30, 60, 7)
    by_day = compared((labels, day, baseline, candidate), "auc").result()
    by_row = compared((labels, np.arange(len(day)), baseline, candidate), "auc").result()
    assert by_day.ci_high - by_day.ci_low > 1.3 * (by_row.ci_high - by_row.ci_low)


def test_swapping_the_subjects_mirrors_the_interval():
    labels, day, one, other = flights(40, 30, 3)
    there = compared((labels, day, one, other), "auc").result()
    back = compared((labels, day, other, one), "auc").result()
    assert (back.ci_low, back.ci_high) == pytest.approx((-there.ci_high, -there.ci_low))
    assert back.delta == pytest.approx(-there.delta)


def test_more_confidence_widens_and_the_same_seed_repeats():
    given = flights(40, 30, 3)
    measured = compared(given, "brier")
    narrow, wide = measured.result(0.8), measured.result(0.99)
    assert wide.ci_low < narrow.ci_low < narrow.delta < narrow.ci_high < wide.ci_high
    assert compared(given, "brier") == measured
    assert compared(given, "brier", seed=1) != measured


def test_the_same_model_is_no_different_for_certain():
    labels, day, one, _ = flights(40, 30, 3)
    result = compared((labels, day, one, one), "auc").result()
    assert (result.delta, result.ci_low, result.ci_high) == (0, 0, 0)


def test_a_difference_that_is_known_exactly():
    result = Measured("size_mb", 2.0, 3.0, 1, draws=(1.0,)).result()
    assert (result.delta, result.ci_low, result.ci_high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("labels", "days", "note"),
    [
        ([], [], "there are no rows"),
        ([0] * 40, range(40), "all 40 rows are of one class (0)"),
        ([1] * 40, range(40), "all 40 rows are of one class (1)"),
        ([0, 1] * 20, [0] * 20 + [1] * 20, "2 days of rows, an interval needs 10"),
        ([1] + [0] * 39, range(40), "too few days have rows of both classes for an interval"),
    ],
)
def test_too_little_gives_a_reason_and_a_gate_holds(labels, days, note):
    scores = np.linspace(0, 1, len(labels))
    measured = compared((labels, list(days), scores, scores[::-1]), "auc")
    assert (measured.draws, measured.note) == ((), note)
    assert measured.result().ci_low is None
    condition = Condition(metric="auc", minimum_n=1)
    verdict = judge("new", "old", {"auc": measured}, [condition], evidence={})
    assert verdict.decision is Decision.HOLD
    assert verdict.reasons[0].endswith(note)


def test_a_thousand_draws_of_a_month_take_a_second_or_two():
    labels, day, baseline, candidate = flights(31, 871, 0)  # 27,001 flights
    begun = perf_counter()
    compared((labels, day, baseline, candidate), "auc", draws=1000)
    assert perf_counter() - begun < 5  # 0.1 s alone; other work may share the machine
