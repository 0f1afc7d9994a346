"""Features that know too much. What is measured only after the event predicts it well in training
and is not there, or is another thing, when a prediction is asked for.

Each feature is tried alone: its value's bin, of twenty in training (missing values are one), gives
the share of positives as a score, and that score's area under the curve on the later test rows says
what the feature knows. A single honest feature seldom knows much; one that is nearly enough by
itself is named, and the gate's condition on `leak_auc` says how much is too much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.classification import Rows, auc, inner_edges
from evals.cluster_bootstrap import Resamples
from evals.compare import Measured
from pipelines.tabular_rows import Array, TabularRows
from pipelines.tabular_spec import LEAK

BINS = 20
CHANCE = 0.5
NAMED = 3


@dataclass(frozen=True, slots=True)
class Knowing:
    """What one feature alone knows: the area under its curve, and its score per test row."""

    feature: str
    auc: float
    scores: Array


def leak(train: TabularRows, test: TabularRows, resamples: Resamples) -> Measured:
    """The area under the curve of the single feature that knows most, against chance."""
    known = what_features_know(train, test)
    if not known:
        return Measured(LEAK, None, None, len(test), note="no feature could be tried alone")
    first = known[0]
    rows = resamples.rows
    note = "alone: " + ", ".join(f"{one.feature} {one.auc:.3f}" for one in known[:NAMED])
    return resamples.measured(
        LEAK, lambda times: np.full(len(times), CHANCE), auc(rows, first.scores), note
    )


def what_features_know(train: TabularRows, test: TabularRows) -> Sequence[Knowing]:
    """Every feature, the one that knows most first; those without a curve are left out."""
    rows = Rows.of(test.labels, np.zeros(len(test)))
    found = []
    learnt, later = train.features, test.features
    for name in train.names:
        scores = _alone(learnt[name].to_numpy(), train.labels, later[name].to_numpy())
        area = float(auc(rows, scores)(rows.whole)[0])
        if np.isfinite(area):
            found.append(Knowing(name, area, scores))
    return sorted(found, key=lambda one: -one.auc)


def _alone(values: Array, labels: Array, later: Array) -> Array:
    """Per later value the share of positives among the values of its bin in training."""
    edges = inner_edges(values[~np.isnan(values)], BINS)
    places, asked = _bins(values, edges), _bins(later, edges)
    counts = np.bincount(places, minlength=len(edges) + 2)
    sums = np.bincount(places, weights=labels, minlength=len(edges) + 2)
    shares = np.where(counts > 0, sums / np.maximum(counts, 1), labels.mean())
    return shares[asked]


def _bins(values: Array, edges: Array) -> Array:
    missing = len(edges) + 1
    return np.where(np.isnan(values), missing, np.searchsorted(edges, values, "right"))
