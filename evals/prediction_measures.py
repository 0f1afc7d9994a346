"""The measures of predictions, each as numbers that add up over rows and a function of their sums.

Numbers: largest distance of the two distributions (Kolmogorov's), on a grid of the values of both
sides. Labels and what is missing: increase of a share. Concept, of predictions whose outcome is
known: increase of the Brier score, increase of the calibration error (mean distance of probability
and frequency in ten bins), decrease of the area under the ROC curve.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.prediction_blocks import Measure

Array = Any

GRID = 64  # cells of a distribution
BINS = 10  # of the calibration error


def grid_of(values: Array) -> Array:
    """Upper edges of cells that hold about as many of `values` each."""
    return np.unique(np.quantile(values, np.linspace(0, 1, GRID), method="higher"))


def number_contents(values: Array, edges: Array) -> Array:
    """Where on the grid each value is; the value; 1."""
    places = np.searchsorted(edges, values)
    cells = np.zeros((len(values), len(edges)))
    cells[np.arange(len(values)), np.minimum(places, len(edges) - 1)] = 1
    return np.column_stack([cells, values, np.ones(len(values))])


def _distance(reference: Array, window: Array) -> Array:
    below = [np.cumsum(side[..., :-2], axis=-1) / side[..., -1:] for side in (reference, window)]
    return np.abs(below[1] - below[0]).max(axis=-1)


def _mean(sums: Array) -> Array:
    return sums[..., -2] / sums[..., -1]


NUMBER = Measure(_mean, _distance)


def share_contents(held: Array) -> Array:
    """Whether it holds; 1."""
    return np.column_stack([held.astype(float), np.ones(len(held))])


SHARE = Measure(_mean, lambda reference, window: _mean(window) - _mean(reference))


def label_contents(values: Array, labels: Sequence[str]) -> Array:
    """Which label each row has: a column for each, and a last one for 1."""
    cells = [(values == label).astype(float) for label in labels]
    return np.column_stack([*cells, np.ones(len(values))])


def label_measure(place: int) -> Measure:
    """The largest increase of any label's share; what is shown is the label at `place`."""
    return Measure(
        lambda sums: sums[..., place] / sums[..., -1],
        lambda reference, window: (_shares(window) - _shares(reference)).max(axis=-1),
    )


def _shares(sums: Array) -> Array:
    return sums[..., :-1] / sums[..., -1:]


def brier_contents(probability: Array, label: Array) -> Array:
    """The squared error; 1."""
    return np.column_stack([(label - probability) ** 2, np.ones(len(label))])


BRIER = SHARE


def calibration_contents(probability: Array, label: Array) -> Array:
    """By bin of the probability how far the outcome is above it; 1."""
    places = np.minimum((probability * BINS).astype(int), BINS - 1)
    cells = np.zeros((len(label), BINS))
    cells[np.arange(len(label)), places] = label - probability
    return np.column_stack([cells, np.ones(len(label))])


def _calibration_error(sums: Array) -> Array:
    return np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1]


CALIBRATION = Measure(
    _calibration_error,
    lambda reference, window: _calibration_error(window) - _calibration_error(reference),
)


def area_contents(probability: Array, label: Array, edges: Array) -> Array:
    """Where on the grid each probability is: of those that came true, then of the others."""
    places = np.minimum(np.searchsorted(edges, probability), len(edges) - 1)
    cells = np.zeros((len(label), 2 * len(edges)))
    cells[np.arange(len(label)), places + np.where(label > 0, 0, len(edges))] = 1
    return cells


def _area(sums: Array) -> Array:
    """Area under the ROC curve; two on one place of the grid are a tie."""
    true, false = np.split(sums, 2, axis=-1)
    below = np.cumsum(false, axis=-1) - false / 2
    pairs = true.sum(axis=-1) * false.sum(axis=-1)
    return (true * below).sum(axis=-1) / pairs


AREA = Measure(_area, lambda reference, window: _area(reference) - _area(window))
