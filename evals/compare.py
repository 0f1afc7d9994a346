"""Compare two subjects on the same cases: the difference of their means, and an interval around it.

Pairs of 0 and 1 are proportions: Newcombe's method 10 (Statistics in Medicine 17, 2635-2650, 1998),
which combines both proportions' Wilson score intervals with a correlation that is corrected for
continuity. It keeps its coverage near 0 and 1 and stays within -1 and 1. Anything else: Student's
t on the differences, which wants some 30 pairs or nearly normal differences.

A metric that only whole sets of rows have (an area under a curve) comes as a `Measured` with its
bootstrap draws: see `evals.cluster_bootstrap`.

Swapping the two subjects mirrors the interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import NormalDist, fmean, stdev

from evals.records import MetricResult

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class PairedTable:
    """How often both were right, only the one, only the other, and neither."""

    both: int
    baseline_only: int
    candidate_only: int
    neither: int

    @property
    def n(self) -> int:
        """Pairs."""
        return self.both + self.baseline_only + self.candidate_only + self.neither


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of two subjects on the same rows, and how far its difference may be off.

    Attributes:
        baseline, candidate: None where it is not defined on these rows.
        n: rows.
        draws: bootstrap draws of candidate - baseline; none: there is no interval, and `note` says
            why. One: the difference is known exactly.
        clusters: groups of rows that were drawn together.
        note: what is to be said with the figures.
    """

    name: str
    baseline: float | None
    candidate: float | None
    n: int
    draws: tuple[float, ...] = ()
    clusters: int = 0
    note: str = ""

    def result(self, confidence: float = CONFIDENCE) -> MetricResult:
        """Both values, their difference and its interval.

        The interval is Student's t with the draws' standard deviation as the standard error and one
        degree of freedom less than there are clusters, which few clusters understate by a little.
        Where it is centred does not depend on the draws: a calibration error is larger on resampled
        rows, and percentiles of the draws would move with it.
        """
        one, other, low, high = self.baseline, self.candidate, None, None
        delta = None if one is None or other is None else other - one
        if delta is not None and self.draws:
            half = self._half(confidence)
            low, high = delta - half, delta + half
        return MetricResult(self.name, one, other, delta, low, high, self.n, None)

    def _half(self, confidence: float) -> float:
        """Half of the interval's width."""
        if len(self.draws) == 1:
            return 0.0
        from scipy.stats import t  # type: ignore[import-untyped]  # slow to import, so only here

        freedom = self.clusters - 1
        error = stdev(self.draws) * sqrt(self.clusters / freedom)
        return float(t.ppf(0.5 + confidence / 2, freedom)) * error


def paired(
    name: str,
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
) -> MetricResult:
    """The metric `name` of both subjects, its difference (candidate - baseline) and interval.

    The values at one place in both sequences belong to one case. Without pairs all is None; a
    single pair of numbers other than 0 and 1 has no interval. `passed` is None: that is a gate's
    business.

    Raises: ValueError where the sequences differ in length or a value is not a finite number.
    """
    if len(baseline) != len(candidate):
        raise ValueError(
            f"{name}: {len(baseline)} values of the baseline, {len(candidate)} of the candidate: "
            "every case needs one of each"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"{name}: confidence {confidence}: between 0 and 1 is wanted")
    for index, pair in enumerate(zip(baseline, candidate, strict=True)):
        if not all(map(isfinite, pair)):
            raise ValueError(f"{name}: pair {index} is {pair}: finite numbers are wanted")
    if not baseline:
        return MetricResult(name, None, None, None, None, None, 0, None)
    low, high = _interval(baseline, candidate, confidence)
    means = fmean(baseline), fmean(candidate)
    return MetricResult(name, *means, means[1] - means[0], low, high, len(baseline), None)


def _interval(
    baseline: Sequence[float], candidate: Sequence[float], confidence: float
) -> tuple[float | None, float | None]:
    if is_binary(baseline) and is_binary(candidate):
        return newcombe(table_of(baseline, candidate), confidence)
    return student(baseline, candidate, confidence)


def is_binary(values: Sequence[float]) -> bool:
    """Whether all values are 0 or 1."""
    return all(value in (0, 1) for value in values)


def table_of(baseline: Sequence[float], candidate: Sequence[float]) -> PairedTable:
    """Count pairs of 0 and 1."""
    pairs = [(bool(one), bool(other)) for one, other in zip(baseline, candidate, strict=True)]
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return PairedTable(*(pairs.count(kind) for kind in kinds))


def newcombe(table: PairedTable, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of candidate - baseline for paired proportions; Newcombe 1998, method 10."""
    n = table.n
    first, second = table.both + table.baseline_only, table.both + table.candidate_only
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    base_low, base_high = wilson(first, n, z)
    cand_low, cand_high = wilson(second, n, z)
    base, cand, phi = first / n, second / n, _correlation(table)
    delta = (table.candidate_only - table.baseline_only) / n
    low = delta - _combined(cand - cand_low, base_high - base, phi)
    high = delta + _combined(cand_high - cand, base - base_low, phi)
    return max(low, -1.0), min(high, 1.0)


def wilson(successes: int, n: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion; `z` is the normal quantile."""
    p, square = successes / n, z * z
    middle = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * sqrt(p * (1 - p) / n + square / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return low, high


def student(
    baseline: Sequence[float], candidate: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """Interval of the mean of candidate - baseline, by Student's t; (None, None) for one pair."""
    differences = [other - one for one, other in zip(baseline, candidate, strict=True)]
    if len(differences) < 2:
        return None, None
    from scipy.stats import t

    quantile = float(t.ppf(0.5 + confidence / 2, len(differences) - 1))
    half = quantile * stdev(differences) / sqrt(len(differences))
    middle = fmean(differences)
    return middle - half, middle + half


def _correlation(table: PairedTable) -> float:
    """Pearson's phi of the table, its numerator moved towards 0 by n / 2 where it is above 0."""
    a, b, c, d = table.both, table.baseline_only, table.candidate_only, table.neither
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    above = a * d - b * c
    corrected = above if above <= 0 else max(above - table.n / 2, 0.0)
    return corrected / sqrt(product)


def _combined(one: float, other: float, phi: float) -> float:
    return sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))
