"""Comparisons by whole blocks of time: they keep their level, and find what there is to find."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evals.prediction_blocks import can_tell, compare, evened, summed
from evals.prediction_measures import (
    AREA,
    BRIER,
    CALIBRATION,
    NUMBER,
    SHARE,
    area_contents,
    brier_contents,
    calibration_contents,
    grid_of,
    label_contents,
    label_measure,
    number_contents,
    share_contents,
)
from evals.shifts import Side, number_shift
from tests.bench.prediction_drift import days_until
from tests.evals.prediction_log import Made

LEVEL, TRIALS, ROWS = 0.05, 300, 40


def days(random, count):
    """Values of days that have weather of their own; and the day of each."""
    values = random.normal(size=(count, 1)) + random.normal(size=(count, ROWS))
    return values.ravel(), np.repeat(np.arange(count), ROWS)


def test_days_that_are_alike_inside_raise_no_more_alarms_than_they_may():
    random, by_days, by_rows = np.random.default_rng(1), 0, 0
    for seed in range(TRIALS):
        sides = [days(random, count) for count in (14, 7)]
        edges = grid_of(np.concatenate([values for values, _ in sides]))
        old, new = (summed(blocks, number_contents(values, edges)) for values, blocks in sides)
        found = compare(NUMBER, old, new, LEVEL, seed)
        by_days += found.score > found.limit
        assert (found.score > found.limit) <= (found.chance <= LEVEL)
        rows = [Side(values, np.arange(len(values))) for values, _ in sides]
        by_rows += number_shift("x", rows[0], rows[1], LEVEL, 0).drifted
    assert by_days <= 26  # more have a chance of 0.2 % at this level
    assert by_rows > TRIALS / 2, "counted by rows they would"


def test_days_with_fewer_rows_are_not_taken_for_a_drift():
    """The calibration error of few rows is larger by chance alone."""
    random, alarms = np.random.default_rng(2), {"as they are": 0, "evened": 0}
    for seed in range(TRIALS):
        sides = []
        for count, rows in ((14, 150), (7, 30)):
            probability = random.random(count * rows)
            label = (random.random(count * rows) < probability).astype(float)
            blocks = np.repeat(np.arange(count), rows)
            sides.append((blocks, calibration_contents(probability, label)))
        kept = evened([blocks for blocks, _ in sides], seed)
        assert [int(one.sum()) for one in kept] == [14 * 30, 7 * 30]
        for name, chosen in (("as they are", [slice(None)] * 2), ("evened", kept)):
            old, new = (
                summed(blocks[rows], contents[rows])
                for (blocks, contents), rows in zip(sides, chosen, strict=True)
            )
            found = compare(CALIBRATION, old, new, LEVEL, seed)
            alarms[name] += found.score > found.limit
    assert alarms["evened"] <= 26
    assert alarms["as they are"] > TRIALS / 2


@pytest.mark.parametrize(
    ("reference", "window", "level", "can"),
    [(14, 7, 1e-4, True), (14, 1, 0.01, False), (14, 2, 0.01, True), (2, 2, 0.01, False),
     (100, 50, 1e-6, False)],
)  # fmt: skip
def test_what_so_many_days_can_tell(reference, window, level, can):
    assert can_tell(reference, window, level) is can


@given(st.integers(0, 2**32 - 1))
def test_sums_over_blocks_give_the_measures_of_all_rows(seed):
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 5, 60)
    probability = np.round(random.random(60), 1)
    label = (random.random(60) < 0.5).astype(float)
    label[:2] = 0, 1

    def value(measure, contents):
        return float(measure.value(summed(blocks, contents).sum(axis=0)))

    edges = grid_of(probability)
    area = value(AREA, area_contents(probability, label, edges))
    assert area == pytest.approx(roc_auc_score(label, probability))
    brier = value(BRIER, brier_contents(probability, label))
    assert brier == pytest.approx(np.mean((probability - label) ** 2))
    error = value(CALIBRATION, calibration_contents(probability, label))
    bins = np.minimum((probability * 10).astype(int), 9)
    by_hand = sum(abs((label - probability)[bins == one].sum()) for one in range(10)) / 60
    assert error == pytest.approx(by_hand)
    assert value(SHARE, share_contents(label > 0)) == pytest.approx(label.mean())
    assert value(NUMBER, number_contents(probability, edges)) == pytest.approx(probability.mean())
    names = np.where(label > 0, "yes", "no").astype(object)
    shares = value(label_measure(1), label_contents(names, ["no", "yes"]))
    assert shares == pytest.approx(label.mean())


@pytest.mark.parametrize(
    ("made", "signal", "within"),
    [(Made(warmer=2), "feature.temp", 10), (Made(flipped=True), "concept_calibration", 7)],
    ids=["feature", "concept"],
)
def test_a_change_is_found_within_days(made, signal, within):
    taken, found = days_until(3, made)
    assert taken is not None
    assert taken <= within
    assert signal in found
