"""A classifier's metrics: the values are scikit-learn's, on all rows and on rows that repeat."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from evals.classification import Rows, auc, brier, calibration_error, f1, least, log_loss

ROW = st.tuples(
    st.integers(0, 1),
    st.sampled_from([0.0, 0.05, 0.2, 0.2000001, 0.5, 0.7, 1.0]),  # so that there are ties
    st.integers(0, 4),
)
ROWS = st.lists(ROW, min_size=1, max_size=60)
TIMES = st.lists(st.integers(0, 3), min_size=5, max_size=5)


def made(given_rows):
    labels, scores, groups = (np.array(column) for column in zip(*given_rows, strict=True))
    return Rows.of(labels, groups), scores.astype(float)


def value(statistic, rows):
    return float(statistic(rows.whole)[0])


def repeated(rows, scores, times):
    """Labels and scores of a resample, row by row."""
    multiplicity = np.array(times)[: rows.clusters][rows.codes]
    return np.repeat(rows.labels, multiplicity), np.repeat(scores, multiplicity)


def at(statistic, rows, times):
    return float(statistic(np.array([times[: rows.clusters]], dtype=float))[0])


@given(ROWS, TIMES)
def test_the_area_under_the_curve_is_scikit_learns_whatever_is_repeated(given_rows, times):
    rows, scores = made(given_rows)
    labels, drawn = repeated(rows, scores, times)
    found = at(auc(rows, scores), rows, times)
    if len(set(labels)) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(labels, drawn), abs=1e-12)


@given(ROWS, TIMES)
def test_means_are_scikit_learns_whatever_is_repeated(given_rows, times):
    rows, scores = made(given_rows)
    labels, drawn = repeated(rows, scores, times)
    found = at(brier(rows, scores), rows, times), at(log_loss(rows, scores), rows, times)
    if not len(labels):
        assert all(map(math.isnan, found))
        return
    clipped = np.clip(drawn, 1e-15, 1 - 1e-15)
    assert found[0] == pytest.approx(brier_score_loss(labels, drawn, pos_label=1), abs=1e-12)
    assert found[1] == pytest.approx(sklearn_log_loss(labels, clipped, labels=[0, 1]), rel=1e-4)


@given(ROWS, TIMES, st.sampled_from([0.0, 0.2, 0.6, 1.1]))
def test_f1_is_scikit_learns_whatever_is_repeated(given_rows, times, threshold):
    rows, scores = made(given_rows)
    labels, drawn = repeated(rows, scores, times)
    found = at(f1(rows, scores, threshold), rows, times)
    if not labels.sum() and not (drawn >= threshold).sum():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(f1_score(labels, drawn >= threshold, zero_division=0))


@given(ROWS)
def test_scores_that_are_turned_round_turn_the_area_round(given_rows):
    rows, scores = made(given_rows)
    one, other = value(auc(rows, scores), rows), value(auc(rows, -scores), rows)
    assert (math.isnan(one) and math.isnan(other)) or one + other == pytest.approx(1)


@given(ROWS)
def test_the_calibration_error_is_between_that_of_the_whole_and_one(given_rows):
    rows, scores = made(given_rows)
    found = value(calibration_error(rows, scores), rows)
    assert abs(scores.mean() - rows.labels.mean()) - 1e-12 <= found <= 1


def test_a_calibration_error_by_hand():
    # Two bins of two rows: 0.1 and 0.2 with one positive (0.35 off), 0.8 and 0.9 with two (0.15).
    rows = Rows.of([0, 1, 1, 1], ["a", "a", "b", "b"])
    found = value(calibration_error(rows, np.array([0.1, 0.2, 0.8, 0.9]), bins=2), rows)
    assert found == pytest.approx((0.35 + 0.15) / 2)


def test_one_probability_for_all_is_one_bin():
    rows = Rows.of([0, 0, 1, 0], [1, 2, 3, 4])
    assert value(calibration_error(rows, np.full(4, 0.25)), rows) == pytest.approx(0)


def test_the_least_is_of_those_that_are_defined():
    rows = Rows.of([0, 1, 1], [1, 2, 3])
    low, undefined = f1(rows, np.zeros(3), 0.5), auc(rows.where([1, 2]), np.ones(2))
    assert value(least([low, undefined, brier(rows, np.ones(3))]), rows) == 0


def test_a_certain_error_is_dear_but_finite():
    rows = Rows.of([1], ["a"])
    assert value(log_loss(rows, np.array([0.0])), rows) == pytest.approx(-math.log(1e-15))


@pytest.mark.parametrize("wrong", [2, -1, float("nan"), 0.5])
def test_a_label_is_zero_or_one(wrong):
    with pytest.raises(ValueError, match="label 1 is"):
        Rows.of([0, wrong], ["a", "b"])


def test_every_label_has_its_group():
    with pytest.raises(ValueError, match="2 labels in 1 groups"):
        Rows.of([0, 1], ["a"])
