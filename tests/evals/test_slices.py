"""The worst slice: whose it is, which rows are too few, and what it says of both subjects."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evals.classification import Rows
from evals.cluster_bootstrap import Resamples
from evals.slices import worst_slice


def flights(n=3000, seed=0):
    draw = np.random.default_rng(seed)
    labels = (draw.random(n) < 0.3).astype(int)
    carrier = draw.choice(["AA", "UA", "OO"], size=n, p=[0.6, 0.39, 0.01])
    good, bad = labels + draw.normal(size=n), draw.normal(size=n)
    rows = Rows.of(labels, np.arange(n) % 30)
    return Resamples.of(rows, seed=0), labels, carrier, good, bad


def test_the_worst_of_each_subject_and_a_note():
    resamples, labels, carrier, good, bad = flights()
    candidate = np.where(carrier == "UA", bad, good)
    measured, slices = worst_slice(resamples, good, candidate, {"carrier": carrier})
    areas = {
        name: roc_auc_score(labels[carrier == name], good[carrier == name]) for name in ["AA", "UA"]
    }
    worst = roc_auc_score(labels[carrier == "UA"], bad[carrier == "UA"])
    assert measured.baseline == pytest.approx(min(areas.values()))
    assert measured.candidate == pytest.approx(worst)
    few = int((carrier == "OO").sum())
    assert measured.note == (
        f"the candidate's worst is carrier=UA ({(carrier == 'UA').sum()} rows); "
        f"left out, with too few rows: carrier=OO ({few})"
    )
    assert [(one.name, one.rows) for one in slices] == [
        (f"carrier={name}", int((carrier == name).sum())) for name in ("AA", "OO", "UA")
    ]
    assert slices[1].candidate is None
    high = measured.result().ci_high
    assert high is not None
    assert high < 0  # it is known to be worse


def test_a_slice_of_one_class_says_nothing():
    resamples, labels, _, good, bad = flights()
    column = np.where(labels == 1, "late", "early")
    measured, slices = worst_slice(resamples, good, bad, {"outcome": column})
    assert measured.candidate is None
    assert measured.note == "no slice has 500 rows and 20 of each class"
    assert [one.positives for one in slices] == [0, int(labels.sum())]


def test_missing_values_are_a_slice_too():
    resamples, _, carrier, good, bad = flights()
    values = [None if name == "UA" else str(name) for name in carrier]
    _, slices = worst_slice(resamples, good, bad, {"carrier": values}, least_rows=10)
    assert {one.value for one in slices} == {"AA", "OO", "None"}
