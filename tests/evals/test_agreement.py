"""Area under the curve and Cohen's kappa: as scikit-learn has them; intervals by simulation."""

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    cohen_kappa_score,
    roc_auc_score,
)

from evals.agreement import Estimate, area, area_estimate, kappa

SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=20)


@given(SCORES, SCORES)
def test_the_area_is_scikit_learns(positive, negative):
    labels = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(labels, positive + negative)
    assert area(positive, negative) == pytest.approx(expected)


def test_one_kind_has_no_area():
    with pytest.raises(ValueError, match="both kinds"):
        area([1.0], [])


def test_the_areas_interval_covers_as_often_as_it_says(monkeypatch):
    """Groups of answers that hang together: drawing answers one by one would cover too seldom."""
    monkeypatch.setattr("evals.agreement.DRAWS", 200)
    rng, true, covered, runs = random.Random(11), 0.8413447, 0, 60  # Phi(1): means sqrt(2) apart
    for _ in range(runs):
        scores, labels, groups = [], [], []
        for group in range(25):
            shift = rng.gauss(0, 0.8)
            for _ in range(6):
                label = rng.random() < 0.5
                noise = shift + rng.gauss(0, 0.6)  # variance 1 in all
                scores.append(noise + (2**0.5 if label else 0.0))
                labels.append(label)
                groups.append(str(group))
        found = area_estimate(scores, labels, groups)
        covered += found.low <= true <= found.high
    assert covered >= 0.85 * runs


def test_the_areas_interval_is_always_the_same():
    given_scores = [0.1, 0.4, 0.35, 0.8], [False, False, True, True], ["a", "a", "b", "b"]
    assert area_estimate(*given_scores) == area_estimate(*given_scores)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_kappa_is_scikit_learns(pairs):
    judged, labels = [one for one, _ in pairs], [other for _, other in pairs]
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="both kinds"):
            kappa(judged, labels)
        return
    found = kappa(judged, labels)
    assert found.value == pytest.approx(cohen_kappa_score(judged, labels))
    assert found.low <= found.value + 1e-9
    assert found.value <= found.high + 1e-9
    assert found.n == len(pairs)


@pytest.mark.parametrize(("agreement", "n"), list(product((0.7, 0.9), (60, 200))))
def test_kappas_interval_covers_as_often_as_it_says(agreement, n):
    rng, covered, runs = random.Random(5), 0, 400
    true = 2 * agreement - 1  # both kinds equally frequent, errors of both kinds too
    for _ in range(runs):
        labels = [rng.random() < 0.5 for _ in range(n)]
        if len(set(labels)) < 2:
            continue
        judged = [label if rng.random() < agreement else not label for label in labels]
        found = kappa(judged, labels)
        covered += found.low <= true <= found.high
    assert covered >= 0.92 * runs


def test_perfect_agreement_on_few_answers_is_not_certainty():
    few, many = (kappa([True, False] * n, [True, False] * n) for n in (4, 100))
    assert few.value == many.value == 1.0
    assert few.low < 0.5 < 0.95 < many.low
    assert few.high == 1.0


def test_an_estimate_reads_well():
    assert str(Estimate(0.8796, 0.83, 0.92, 190)) == "0.880 [0.830, 0.920]"
