"""Whether two sides differ, told by whole blocks of time.

Predictions of one day are alike: one storm delays a thousand flights. What can be told depends on
the days that were seen, not on the rows. So each block (a day) is boiled down to a few numbers that
add up - counts, sums, histograms - and every measure is a function of such sums.

Chance is what the measure becomes when the blocks are dealt out to the two sides anew (a
permutation test; Pitman 1937). Where nothing has changed, one deal is as likely as another, so the
chance is exact whatever the values are and however alike the rows of a block. That wants blocks of
one size: a side with more rows a day is steadier, and its days are told from the other's by that
alone. So rows are left out, at random, until both sides' days have as many (`evened`). Intervals
come from drawing each side's blocks, with all rows, with replacement (cluster bootstrap).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

Array = Any  # numpy's arrays; its types are not known to the type checker

FIRST_DEALS, CLEARLY_CHANCE = 1_000, 20  # so many as far out among the first: no need of more
DEALS_A_LEVEL = 5  # of chance, that may be further out than a drift
MOST_DEALS = 200_000
DEALS_AT_ONCE = 4_096
DRAWS = 1_000  # of an interval
DIGITS = 12  # sums of the same blocks in another order are the same


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure as functions of a side's sums; both take many sums at once, along the last axis.

    Attributes:
        value: what is shown of a side, such as a mean.
        score: how far the second side is from the first.
    """

    value: Callable[[Array], Array]
    score: Callable[[Array, Array], Array]


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a comparison: `limit` is what chance reaches at the level; see `Shift`."""

    score: float
    limit: float
    chance: float
    baseline: float
    candidate: float
    low: float
    high: float


def summed(blocks: Array, contents: Array) -> Array:
    """The rows of `contents` added up by block; a row for each block."""
    _, places = np.unique(blocks, return_inverse=True)
    sums = np.zeros((places.max() + 1, contents.shape[1]))
    np.add.at(sums, places, contents)
    return sums


def evened(sides: Sequence[Array], seed: int) -> list[Array]:
    """Which rows of each side (given as the block of each row) are compared: of no block more than
    the smaller of the two sides' medians, drawn at random."""
    random = np.random.default_rng(seed)
    most = int(min(np.median(np.unique(side, return_counts=True)[1]) for side in sides))
    return [_at_most(side, most, random) for side in sides]


def can_tell(reference: int, window: int, level: float) -> bool:
    """Whether so many blocks can be dealt out in ways enough to find anything at `level`."""
    return level * min(comb(reference + window, window), MOST_DEALS) >= 1


def compare(
    measure: Measure,
    reference: Array,
    window: Array,
    level: float,
    seed: int,
    whole: Sequence[Array] | None = None,
) -> Found:
    """Compare two sides, each a row of sums for each of its blocks.

    `whole`: the sums of all rows of both, for what is shown, where some were left out.
    """
    random = np.random.default_rng(seed)
    pooled, size = np.concatenate([reference, window]), len(window)
    sides = reference.sum(axis=0), window.sum(axis=0)
    score = float(_scores(measure, sides[0][None], sides[1][None])[0])
    needed = min(int(DEALS_A_LEVEL / level), MOST_DEALS)
    dealt = _dealt(measure, pooled, size, min(FIRST_DEALS, needed), random)
    if (dealt >= score).sum() < CLEARLY_CHANCE and needed > len(dealt):
        more = _dealt(measure, pooled, size, needed - len(dealt), random)
        dealt = np.concatenate([dealt, more])
    rank = max(int(level * (len(dealt) + 1)), 1)
    shown = (reference, window) if whole is None else whole
    low, high = _interval(measure, shown, random)
    return Found(
        score=score,
        limit=float(np.partition(dealt, -rank)[-rank]),
        chance=float((1 + (dealt >= score).sum()) / (1 + len(dealt))),
        baseline=float(measure.value(shown[0].sum(axis=0))),
        candidate=float(measure.value(shown[1].sum(axis=0))),
        low=low,
        high=high,
    )


def _scores(measure: Measure, reference: Array, window: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.round(measure.score(reference, window), DIGITS)
    return np.nan_to_num(scores, nan=-np.inf)


def _dealt(measure: Measure, pooled: Array, size: int, deals: int, random: Any) -> Array:
    """The scores of `deals` deals that give `size` blocks to the window."""
    total, found = pooled.sum(axis=0), []
    for start in range(0, deals, DEALS_AT_ONCE):
        drawn = random.random((min(DEALS_AT_ONCE, deals - start), len(pooled)))
        chosen = drawn.argsort(axis=1).argsort(axis=1) < size
        window = chosen.astype(float) @ pooled
        found.append(_scores(measure, total - window, window))
    return np.concatenate(found)


def _at_most(block: Array, most: int, random: Any) -> Array:
    order = random.permutation(len(block))
    order = order[np.argsort(block[order], kind="stable")]
    _, first, place = np.unique(block[order], return_index=True, return_inverse=True)
    kept = np.zeros(len(block), dtype=bool)
    kept[order[np.arange(len(block)) - first[place] < most]] = True
    return kept


def _interval(measure: Measure, sides: Sequence[Array], random: Any) -> tuple[float, float]:
    """95 % interval of the window's value less the reference's."""
    values = []
    for side in sides:
        drawn = random.multinomial(len(side), np.full(len(side), 1 / len(side)), DRAWS)
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(measure.value(drawn @ side))
    differences = values[1] - values[0]
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return float(low), float(high)
