"""Always-valid intervals for means of values in [0, 1], and for the difference of two means.

An always-valid interval (a confidence sequence) may be looked at after every observation, and the
experiment stopped because of what is seen: the chance that it *ever* leaves out the true value is
at most alpha. There is no minimum size, no normal approximation and no assumption on the values'
distribution but their bounds.

How: somebody bets fairly against the claim that a mean is `m`. With an alternative `p` the stake
is multiplied by `x p/m + (1-x)(1-p)/(1-m)` at each value `x`. If the mean is `m`, that is 1 on
average, so the wealth W(m) ever grows beyond 1/alpha with a chance of at most alpha (Ville).
The interval is what was not refuted so: {m: W(m) < 1/alpha}. See Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS-B 2024. The stake is spread evenly
over a fixed set of alternatives (a universal portfolio: Orabona and Jun, "Tight concentrations and
confidence sequences from the regret of universal portfolio", IEEE Trans. Inf. Theory 2024), so
nothing is tuned, and the order of the values does not matter.

For two arms the wealths are multiplied: W(m, m') = W(m) W(m'). That is a fair bet too, in whatever
order and share the arms' values come, and it needs about half the values that two intervals side
by side need. The interval of the difference is {m' - m: W(m, m') < 1/alpha}.

Invariants: log W is convex in each mean, so these sets are intervals. What the grid and the
rounding of values leave open is added to the interval, never taken from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVELS = 1000
ALTERNATIVES = 128
POINTS = 257
EDGE = 1e-12

Array = Any  # numpy's arrays; its types are not known to the type checker


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`; `estimate` is the plain mean or difference, None without values."""

    estimate: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of one arm, as counts: `counts[i]` of them are `levels[i]`. Order is not kept.

    `mean` is None without values. Values are rounded to 1/1000; `rounding` is the most that this
    moves their mean, 0 where nothing had to be rounded.
    """

    levels: Array
    counts: Array
    mean: float | None
    rounding: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Count `values`; ValueError names one that is not in [0, 1]."""
        given = np.asarray(values, dtype=float)
        wrong = given[~((given >= 0) & (given <= 1))]
        if wrong.size:
            raise ValueError(f"a value of {wrong[0]} is not between 0 and 1")
        steps, counts = np.unique(np.rint(given * LEVELS), return_counts=True)
        mean = float(given.mean()) if given.size else None
        off = np.abs(np.rint(given * LEVELS) / LEVELS - given).max(initial=0.0)
        return cls(steps / LEVELS, counts, mean, rounding=float(off))

    def log_wealth(self, means: Array) -> Array:
        """Logarithm of the wealth of whoever bet against each of `means`; 0 without values."""
        claimed = np.clip(np.asarray(means, dtype=float), EDGE, 1 - EDGE)
        alternatives = _alternatives()[:, None]
        if_one = alternatives / claimed
        if_zero = (1 - alternatives) / (1 - claimed)
        wealth = np.zeros_like(if_one)
        for level, count in zip(self.levels, self.counts, strict=True):
            wealth += count * np.log(level * if_one + (1 - level) * if_zero)
        highest = wealth.max(axis=0)
        return highest + np.log(np.exp(wealth - highest).mean(axis=0))


def mean_interval(sample: Sample, alpha: float = 0.05) -> Interval:
    """The always-valid interval of one mean. `alpha`: the chance that it ever misses it."""
    limit = _limit(alpha)
    means = _fine(sample, limit)
    inside = means[sample.log_wealth(means) < limit]
    slack = (means[1] - means[0]) + sample.rounding
    low, high = float(inside.min() - slack), float(inside.max() + slack)
    return Interval(sample.mean, max(low, 0.0), min(high, 1.0))


def difference_interval(baseline: Sample, candidate: Sample, alpha: float = 0.05) -> Interval:
    """The always-valid interval of `candidate`'s mean less `baseline`'s.

    The arms may be of any size and their values come in any order, decided by the past only.
    """
    limit = _limit(alpha)
    base = _fine(baseline, limit - _lowest(candidate))
    other = _fine(candidate, limit - _lowest(baseline))
    wealth = baseline.log_wealth(base)[:, None] + candidate.log_wealth(other)[None, :]
    inside = (other[None, :] - base[:, None])[wealth < limit]
    slack = (base[1] - base[0]) + (other[1] - other[0]) + baseline.rounding + candidate.rounding
    low, high = float(inside.min() - slack), float(inside.max() + slack)
    return Interval(_difference(baseline, candidate), max(low, -1.0), min(high, 1.0))


def _difference(baseline: Sample, candidate: Sample) -> float | None:
    if baseline.mean is None or candidate.mean is None:
        return None
    return candidate.mean - baseline.mean


def _limit(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 and 1")
    return math.log(1 / alpha)


def _alternatives() -> Array:
    """Nodes of the arcsine distribution, the prior with which no mean is at a disadvantage."""
    number = np.arange(1, ALTERNATIVES + 1)
    return (1 + np.cos((2 * number - 1) * math.pi / (2 * ALTERNATIVES))) / 2


def _coarse(sample: Sample) -> Array:
    """[0, 1] in even steps, and the mean itself: there the wealth is at most 1 (Jensen)."""
    return np.union1d(np.linspace(0, 1, POINTS), [] if sample.mean is None else [sample.mean])


def _lowest(sample: Sample) -> float:
    return float(sample.log_wealth(_coarse(sample)).min())


def _fine(sample: Sample, limit: float) -> Array:
    """Even steps over the means that are below `limit`, and one step further on either side."""
    means = _coarse(sample)
    inside = np.flatnonzero(sample.log_wealth(means) < limit)
    first = means[max(inside[0] - 1, 0)]
    last = means[min(inside[-1] + 1, len(means) - 1)]
    return np.linspace(first, last, POINTS)
