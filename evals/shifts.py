"""How far a window is from its reference in one respect, and whether chance explains it.

Every measure here is a two-sample test that holds whatever the distribution of the values, far out
in the tail too, where drift checks that are repeated all month need it:

- shares (refusals, languages, texts unlike the reference): Fisher's exact test of an increase;
- numbers (lengths, tokens, cost): Kolmogorov and Smirnov's largest distance of two distributions;
- scores of a classifier that was trained on other rows: Mann and Whitney's rank test, whose
  statistic is the area under the ROC curve;
- embeddings: Hotelling's test of two means, which needs no more of the distribution than that means
  of hundreds of rows are nearly normal.

Rows of one user resemble each other, and such rows say less than as many users would. How much less
is the design effect (Kish 1965), estimated from the rows; every test counts rows divided by it. It
is 1 where each row has a user of its own.

A signal has drifted where its score is beyond its limit: the larger of what chance reaches at the
given level, and the least change that matters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = Any  # numpy's arrays; its types are not known to the type checker

CONFIDENCE_Z = 1.959963984540054
EFFECT_AXES = 5  # of a vector, the foremost, that its design effect is estimated from
LEAST_USERS = 30  # with fewer too little is known of how they differ


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: values, and the user of each as a number."""

    values: Array
    units: Array

    def __len__(self) -> int:
        return len(self.values)

    def known(self) -> "Side":
        """Without rows that have no value."""
        kept = ~np.isnan(self.values)
        return Side(self.values[kept], self.units[kept])


@dataclass(frozen=True, slots=True)
class Shift:
    """What was found of one signal.

    Attributes:
        score: how far the window is from the reference, in the signal's own measure.
        limit: the score up to which nothing has drifted.
        chance: how often a score as high comes about without drift.
        baseline, candidate: mean, share, or 0.5 and the area under the curve.
        low, high: 95 % interval of candidate - baseline.
        reference_rows, window_rows: what it rests on.
        detail: what has changed, where there is more to say.
        drawn: values of reference and window to be drawn, where they are no column of the window.
    """

    signal: str
    score: float
    limit: float
    chance: float
    baseline: float
    candidate: float
    low: float
    high: float
    reference_rows: int
    window_rows: int
    detail: str = ""
    drawn: tuple[Array, Array] | None = field(default=None, repr=False, compare=False)

    @property
    def drifted(self) -> bool:
        """Whether the score is beyond its limit."""
        return self.score > self.limit


def users_worth(units: Array) -> float:
    """As many users as `units` would be if each had as many rows as another (Kish): two hundred, of
    whom one has half of the rows, are four."""
    rows = np.unique(units, return_counts=True)[1].astype(float)
    return float(rows.sum() ** 2 / (rows @ rows)) if len(rows) else 0.0


def design_effect(*sides: Side) -> float:
    """Variance of a mean over what it would be if every row were a user; at least 1."""
    between = within = 0.0
    for side in sides:
        centred = side.values - side.values.mean()
        _, codes = np.unique(side.units, return_inverse=True)
        sums = np.bincount(codes, weights=centred)
        between += float(sums @ sums)
        within += float(centred @ centred)
    return max(between / within, 1.0) if within > 0 else 1.0


def share_shift(signal: str, reference: Side, window: Side, level: float, least: float) -> Shift:
    """An increase of a share. Values are 0 or 1."""
    effect = design_effect(reference, window)
    counts = [float(side.values.sum()) for side in (reference, window)]
    rows = [len(reference), len(window)]
    chance, limit = _fisher(counts, rows, effect, level)
    shares = [count / row for count, row in zip(counts, rows, strict=True)]
    low, high = _newcombe(shares, [row / effect for row in rows])
    return Shift(
        signal=signal,
        score=shares[1] - shares[0],
        limit=max(limit, least),
        chance=chance,
        baseline=shares[0],
        candidate=shares[1],
        low=low,
        high=high,
        reference_rows=rows[0],
        window_rows=rows[1],
    )


def label_shift(
    signal: str, reference: Sequence[str], window: Sequence[str], units: tuple[Array, Array],
    level: float, least: float,
) -> Shift:  # fmt: skip
    """The increase of that label's share which chance explains least."""
    sides = np.asarray(reference, dtype=object), np.asarray(window, dtype=object)
    labels = sorted({*sides[0], *sides[1]})
    found = []
    for label in labels:
        old, new = (
            Side((side == label).astype(float), unit)
            for side, unit in zip(sides, units, strict=True)
        )
        found.append((label, share_shift(signal, old, new, level / len(labels), least)))
    label, shift = min(found, key=lambda one: (one[1].chance, -one[1].score))
    return replace(shift, chance=min(shift.chance * len(labels), 1.0), detail=label)


def number_shift(signal: str, reference: Side, window: Side, level: float, least: float) -> Shift:
    """The largest distance of the two distributions, 0 to 1."""
    from scipy import stats  # type: ignore[import-untyped]  # slow to import: where it is used

    rows = [len(reference), len(window)]
    pooled = np.concatenate([reference.values, window.values])
    ranks = stats.rankdata(pooled)
    effect = design_effect(
        Side(ranks[: rows[0]], reference.units), Side(ranks[rows[0] :], window.units)
    )
    distance = kolmogorov_distance(reference.values, window.values)
    root = math.sqrt(rows[0] * rows[1] / (rows[0] + rows[1]) / effect)
    means = [float(side.values.mean()) for side in (reference, window)]
    spread = math.sqrt(
        effect * sum(float(side.values.var()) / len(side) for side in (reference, window))
    )
    delta = means[1] - means[0]
    return Shift(
        signal=signal,
        score=distance,
        limit=max(float(stats.kstwobign.isf(level)) / root, least),
        chance=float(stats.kstwobign.sf(root * distance)),
        baseline=means[0],
        candidate=means[1],
        low=delta - CONFIDENCE_Z * spread,
        high=delta + CONFIDENCE_Z * spread,
        reference_rows=rows[0],
        window_rows=rows[1],
    )


def rank_shift(signal: str, reference: Side, window: Side, level: float, least: float) -> Shift:
    """The chance that a row of the window scores above one of the reference (area under the ROC
    curve). `values` are scores of a classifier that never saw these rows."""
    from scipy import stats

    rows = [len(reference), len(window)]
    ranks = stats.rankdata(np.concatenate([reference.values, window.values]))
    area = (ranks[rows[0] :].sum() - rows[1] * (rows[1] + 1) / 2) / (rows[0] * rows[1])
    effect = design_effect(
        Side(ranks[: rows[0]], reference.units), Side(ranks[rows[0] :], window.units)
    )
    deviation = math.sqrt(effect * (sum(rows) + 1) / (12 * rows[0] * rows[1]))
    return Shift(
        signal=signal,
        score=float(area),
        limit=max(0.5 + float(stats.norm.isf(level)) * deviation, 0.5 + least),
        chance=float(stats.norm.sf((area - 0.5) / deviation)),
        baseline=0.5,
        candidate=float(area),
        low=float(area) - 0.5 - CONFIDENCE_Z * deviation,
        high=float(area) - 0.5 + CONFIDENCE_Z * deviation,
        reference_rows=rows[0],
        window_rows=rows[1],
        drawn=(reference.values, window.values),
    )


def mean_shift(
    signal: str, reference: Array, window: Array, units: tuple[Array, Array], level: float,
    least: float,
) -> Shift:  # fmt: skip
    """The distance of the means, in standard deviations (Mahalanobis), less what chance adds to it.

    Rows of `reference` and `window` are vectors, of far fewer numbers than there are rows.
    """
    from scipy import stats

    rows, size = (len(reference), len(window)), reference.shape[1]
    means = reference.mean(axis=0), window.mean(axis=0)
    centred = reference - means[0], window - means[1]
    within = (centred[0].T @ centred[0] + centred[1].T @ centred[1]) / (sum(rows) - 2)
    direction = np.linalg.solve(within, means[1] - means[0])
    squared = float((means[1] - means[0]) @ direction)
    drawn = reference @ direction, window @ direction
    effect = max(
        design_effect(*(Side(one[:, axis], unit) for one, unit in zip(centred, units, strict=True)))
        for axis in range(min(size, EFFECT_AXES))
    )
    per_row = effect * sum(rows) / (rows[0] * rows[1])  # variance of a difference of means
    freedom = sum(rows) - size - 1
    unit = size * (sum(rows) - 2) / freedom * per_row
    by_chance = size * per_row
    deviation = math.sqrt(2 * size * per_row**2 + 4 * max(squared - by_chance, 0.0) * per_row)
    limit = float(stats.f.isf(level, size, freedom)) * unit
    score, low, high, beyond = (
        math.sqrt(max(value - by_chance, 0.0))
        for value in (
            squared, squared - CONFIDENCE_Z * deviation, squared + CONFIDENCE_Z * deviation, limit
        )
    )  # fmt: skip
    return Shift(
        signal=signal,
        score=score,
        limit=max(beyond, least),
        chance=float(stats.f.sf(squared / unit, size, freedom)),
        baseline=0.0,
        candidate=score,
        low=low,
        high=high,
        reference_rows=rows[0],
        window_rows=rows[1],
        drawn=drawn,
    )


def kolmogorov_distance(one: Array, other: Array) -> float:
    """The largest distance between two empirical distribution functions."""
    points = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(side), points, side="right") / len(side)
             for side in (one, other)]  # fmt: skip
    return float(np.abs(below[0] - below[1]).max())


def _fisher(
    counts: Sequence[float], rows: Sequence[int], effect: float, level: float
) -> tuple[float, float]:
    """How often chance makes the second share as high, and the difference it reaches at `level`."""
    from scipy import stats

    of = [max(int(row / effect), 1) for row in rows]  # a side is one user at least
    held = [int(count / effect) for count in counts]
    law = (sum(of), sum(held), of[1])
    chance = float(stats.hypergeom.sf(held[1] - 1, *law))
    most = int(stats.hypergeom.isf(level, *law))
    return chance, most / of[1] - (sum(held) - most) / of[0]


def _newcombe(shares: Sequence[float], rows: Sequence[float]) -> tuple[float, float]:
    """Interval of the second share less the first (Newcombe 1998, method 10, unpaired)."""
    bounds = [_wilson(share, row) for share, row in zip(shares, rows, strict=True)]
    delta = shares[1] - shares[0]
    low = delta - math.hypot(shares[1] - bounds[1][0], bounds[0][1] - shares[0])
    high = delta + math.hypot(bounds[1][1] - shares[1], shares[0] - bounds[0][0])
    return max(low, -1.0), min(high, 1.0)


def _wilson(share: float, rows: float) -> tuple[float, float]:
    squared = CONFIDENCE_Z**2 / rows
    middle = share + squared / 2
    reach = CONFIDENCE_Z * math.sqrt(share * (1 - share) / rows + squared / (4 * rows))
    return (middle - reach) / (1 + squared), (middle + reach) / (1 + squared)
