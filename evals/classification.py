"""Metrics of a classifier's probabilities, written over sums per cluster of rows.

A cluster is a group of rows that resemble each other, such as the flights of one day. Given how
often each cluster counts, a metric follows from sums that are made once: so it has its value on all
rows (each cluster once) and on a thousand resamples of whole clusters in a few matrix products,
without going through the rows again. The area under the curve is a quadratic form: of each pair of
clusters it is known how often a positive row of the one is above a negative row of the other.

Statistics give NaN where they are not defined: an area under the curve needs both classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # numpy's arrays; its types are not known to the type checker
Statistic = Callable[[Array], Array]  # (draws, clusters) of multiplicities -> (draws,) of values

BINS = 10
LEAST_PROBABILITY = 1e-15  # as scikit-learn's: a certain error costs 34.5, not everything


@dataclass(frozen=True, slots=True)
class Rows:
    """What came true of each row, and which cluster it is in.

    Attributes:
        labels: 0 or 1.
        codes: number of the row's cluster, from 0.
        clusters: how many there are.
    """

    labels: Array
    codes: Array
    clusters: int

    @classmethod
    def of(cls, labels: Array, groups: Sequence[Any] | Array) -> "Rows":
        """Rows whose clusters are named by `groups`.

        Raises: ValueError where a label is not 0 or 1, or has no group.
        """
        known = np.asarray(labels, dtype=float)
        wrong = np.flatnonzero((known != 0) & (known != 1))
        if len(wrong):
            raise ValueError(f"label {wrong[0]} is {known[wrong[0]]}: 0 or 1 is wanted")
        if len(known) != len(groups):
            raise ValueError(f"{len(known)} labels in {len(groups)} groups: one for each is wanted")
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        return cls(known, codes, len(names))

    def __len__(self) -> int:
        return len(self.labels)

    def sums(self, values: Array) -> Array:
        """Of `values`, per cluster."""
        return np.bincount(self.codes, weights=values, minlength=self.clusters)

    def where(self, kept: Array) -> "Rows":
        """Some of the rows; clusters keep their numbers."""
        return Rows(self.labels[kept], self.codes[kept], self.clusters)

    @property
    def whole(self) -> Array:
        """Multiplicities with which a statistic is the metric on all rows."""
        return np.ones((1, self.clusters))


def auc(rows: Rows, scores: Array) -> Statistic:
    """Area under the ROC curve: how often a positive row is above a negative one, ties half."""
    positive = rows.labels == 1
    wins = _wins(rows.where(positive), scores[positive], rows.where(~positive), scores[~positive])
    positives, negatives = rows.sums(rows.labels), rows.sums(1 - rows.labels)

    def statistic(times: Array) -> Array:
        won = ((times @ wins) * times).sum(axis=1)
        return _share(won, (times @ positives) * (times @ negatives))

    return statistic


def _wins(above: Rows, high: Array, below: Rows, low: Array) -> Array:
    """Per pair of clusters: pairs of rows in which the score of the former's is the higher."""
    wins = np.zeros((above.clusters, above.clusters))
    order = np.argsort(low, kind="stable")
    codes, ordered = below.codes[order], low[order]
    for cluster in np.unique(codes):
        own = ordered[codes == cluster]
        beaten = np.searchsorted(own, high, "left") + np.searchsorted(own, high, "right")
        wins[:, cluster] = above.sums(beaten / 2)
    return wins


def brier(rows: Rows, scores: Array) -> Statistic:
    """Mean square of probability less outcome; lower is better."""
    return _mean(rows, (scores - rows.labels) ** 2)


def log_loss(rows: Rows, scores: Array) -> Statistic:
    """Mean of -ln of the probability of what came true; lower is better."""
    likely = np.where(rows.labels == 1, scores, 1 - scores)
    return _mean(rows, -np.log(np.clip(likely, LEAST_PROBABILITY, 1.0)))


def calibration_error(rows: Rows, scores: Array, bins: int = BINS) -> Statistic:
    """Expected calibration error: |mean probability - share of positives|, averaged over `bins`
    with as many rows each; lower is better."""
    edges = inner_edges(scores, bins)
    places = np.searchsorted(edges, scores, "right")
    cells = np.zeros((rows.clusters, len(edges) + 1))
    np.add.at(cells, (rows.codes, places), scores - rows.labels)
    counts = rows.sums(np.ones(len(rows)))

    def statistic(times: Array) -> Array:
        return _share(np.abs(times @ cells).sum(axis=1), times @ counts)

    return statistic


def inner_edges(values: Array, bins: int) -> Array:
    """The edges between `bins` that hold as many values each; fewer where values repeat."""
    if not len(values):
        return np.empty(0)
    return np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))


def f1(rows: Rows, scores: Array, threshold: float) -> Statistic:
    """Harmonic mean of precision and recall where `threshold` and more means yes."""
    said = (scores >= threshold).astype(float)
    right = rows.sums(said * rows.labels)
    either = rows.sums(said + rows.labels)

    def statistic(times: Array) -> Array:
        return _share(2 * (times @ right), times @ either)

    return statistic


def least(statistics: Sequence[Statistic]) -> Statistic:
    """The lowest of several, of those that are defined."""

    def statistic(times: Array) -> Array:
        return np.fmin.reduce([one(times) for one in statistics])

    return statistic


def _mean(rows: Rows, values: Array) -> Statistic:
    sums, counts = rows.sums(values), rows.sums(np.ones(len(rows)))

    def statistic(times: Array) -> Array:
        return _share(times @ sums, times @ counts)

    return statistic


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
