"""The paired comparison, against published values, against simulation, and its symmetries."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.compare import PairedTable, newcombe, paired, student, table_of, wilson
from evals.records import MetricResult

# Newcombe, Statistics in Medicine 17 (1998), table III: cells (e, f, g, h), limits of method 10 for
# (f - g) / n. By the paper's own definition the row 1/97/1/1 is 0.8737; it prints 0.8736.
PUBLISHED = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((20, 12, 2, 16), (0.0562, 0.3292)),
    ((18, 12, 2, 18), (0.0562, 0.3290)),
    ((36, 14, 0, 0), (0.1528, 0.4167)),
    ((35, 14, 0, 1), (0.1461, 0.4175)),
    ((18, 14, 0, 18), (0.1441, 0.3963)),
    ((2, 97, 1, 0), (0.8721, 0.9854)),
    ((1, 97, 1, 1), (0.8737, 0.9850)),
    ((0, 29, 1, 0), (0.6666, 0.9882)),
    ((2, 98, 0, 0), (0.9178, 0.9945)),
    ((1, 98, 0, 1), (0.9171, 0.9916)),
    ((0, 30, 0, 0), (0.8395, 1.0000)),
    ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ((53, 0, 0, 1), (-0.0729, 0.0729)),
    ((30, 0, 0, 24), (-0.0358, 0.0358)),
    ((29, 0, 0, 25), (-0.0354, 0.0354)),
    ((28, 0, 0, 26), (-0.0352, 0.0352)),
    ((27, 0, 0, 27), (-0.0351, 0.0351)),
]
BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
NUMBERS = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=40)


def sides(pairs):
    return [float(one) for one, _ in pairs], [float(other) for _, other in pairs]


def figures(result: MetricResult) -> tuple[float, float, float]:
    """Difference, lower and upper limit; all are there."""
    assert result.delta is not None
    assert result.ci_low is not None
    assert result.ci_high is not None
    return result.delta, result.ci_low, result.ci_high


@pytest.mark.parametrize(("cells", "limits"), PUBLISHED)
def test_newcombes_table_iii(cells, limits):
    e, f, g, h = cells  # f: only the first, whose difference is first - second
    found = newcombe(PairedTable(both=e, baseline_only=g, candidate_only=f, neither=h))
    assert found == pytest.approx(limits, abs=5.1e-5)


def test_another_books_example():
    # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables (2017), chapter 8:
    # 59, 6, 16, 80 gives -0.0621 (-0.1186 to -0.0046) for first - second.
    baseline, candidate = sides([(1, 1)] * 59 + [(0, 1)] * 6 + [(1, 0)] * 16 + [(0, 0)] * 80)
    result = paired("cured", baseline, candidate)
    assert figures(result) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5.1e-5)
    assert (result.baseline, result.candidate, result.n) == (75 / 161, 65 / 161, 161)


@pytest.mark.parametrize(
    ("n", "cells"),
    [
        (20, (0.90, 0.05, 0.05, 0.00)),
        (20, (0.30, 0.20, 0.20, 0.30)),
        (20, (0.02, 0.08, 0.00, 0.90)),
        (50, (0.02, 0.02, 0.90, 0.06)),
        (50, (0.97, 0.01, 0.01, 0.01)),
        (50, (0.00, 0.01, 0.10, 0.89)),
        (240, (0.10, 0.02, 0.66, 0.22)),
        (240, (0.45, 0.05, 0.05, 0.45)),
    ],
)
def test_coverage(n, cells):
    """By simulation: the interval holds the truth in 95 % of the samples, less a little."""
    draw, rounds, covered = random.Random(f"{n}/{cells}"), 3000, 0
    truth = cells[2] - cells[1]
    for _ in range(rounds):
        kinds = draw.choices(range(4), cells, k=n)
        low, high = newcombe(PairedTable(*(kinds.count(kind) for kind in range(4))))
        covered += low <= truth <= high
    assert covered / rounds > 0.935  # 0.95 less Newcombe's own dips and 3 standard errors (0.012)


@pytest.mark.parametrize("n", [5, 15, 60])
def test_coverage_of_the_mean(n):
    draw, rounds, covered = random.Random(n), 2000, 0
    for _ in range(rounds):
        baseline = [draw.gauss(100, 20) for _ in range(n)]
        candidate = [value + draw.gauss(3, 5) for value in baseline]
        low, high = student(baseline, candidate)
        assert low is not None
        assert high is not None
        covered += low <= 3 <= high
    assert 0.93 < covered / rounds < 0.97


def test_a_mean_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653.
    result = paired("ms", [10, 10, 10], [11, 12, 13])
    assert (result.ci_low, result.ci_high) == pytest.approx((2 - 2.484138, 2 + 2.484138))


@given(BITS, st.sampled_from([0.8, 0.95, 0.99]))
def test_swapping_mirrors_proportions(pairs, confidence):
    _mirrors(sides(pairs), confidence)


@given(NUMBERS, st.sampled_from([0.8, 0.95, 0.99]))
def test_swapping_mirrors_means(pairs, confidence):
    _mirrors(sides(pairs), confidence)


def _mirrors(given_, confidence):
    baseline, candidate = given_
    one = paired("metric", baseline, candidate, confidence=confidence)
    other = paired("metric", candidate, baseline, confidence=confidence)
    delta, low, high = figures(other)
    assert figures(one) == pytest.approx((-delta, -high, -low), rel=1e-9, abs=1e-9)


@given(BITS)
def test_the_interval_holds_the_difference_within_minus_one_and_one(pairs):
    delta, low, high = figures(paired("metric", *sides(pairs)))
    assert -1 <= low <= delta + 1e-12
    assert delta - 1e-12 <= high <= 1


@given(BITS)
def test_more_of_the_same_narrows(pairs):
    few, few_low, few_high = figures(paired("metric", *sides(pairs)))
    many, many_low, many_high = figures(paired("metric", *sides(pairs * 4)))
    assert many == pytest.approx(few)
    assert many_high - many_low < few_high - few_low


@given(BITS, st.floats(0.5, 0.9), st.floats(0.91, 0.999))
def test_more_confidence_widens(pairs, less, more):
    low, high = newcombe(table_of(*sides(pairs)), less)
    wide_low, wide_high = newcombe(table_of(*sides(pairs)), more)
    assert wide_low <= low + 1e-12
    assert high <= wide_high + 1e-12


@given(st.integers(1, 500))
def test_alike_in_everything_is_not_certainty(n):
    delta, low, high = figures(paired("metric", [1.0] * n, [1.0] * n))
    assert low < 0 < high
    assert delta == 0


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_within_zero_and_one(given_):
    successes, n = given_
    low, high = wilson(successes, n, 1.96)
    assert 0 <= low <= successes / n <= high <= 1


def test_nothing_to_compare():
    result = paired("metric", [], [])
    assert (result.baseline, result.candidate, result.delta) == (None, None, None)
    assert (result.ci_low, result.ci_high, result.n, result.passed) == (None, None, 0, None)


def test_one_pair_has_no_interval_of_means_but_one_of_proportions():
    assert paired("ms", [10.0], [12.0]).ci_low is None
    assert paired("right", [0.0], [1.0]).ci_low is not None


def test_one_fraction_among_bits_is_no_proportion():
    bits, fraction = [0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.5]
    low, high = student(bits, fraction)
    result = paired("metric", bits, fraction)
    assert (result.ci_low, result.ci_high) == (low, high)


@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        ([1.0, 0.0], [1.0], "right: 2 values of the baseline, 1 of the candidate"),
        ([1.0, float("nan")], [1.0, 1.0], r"right: pair 1 is \(nan, 1.0\)"),
        ([1.0], [float("inf")], "finite numbers are wanted"),
    ],
)
def test_what_cannot_be_compared_is_refused(baseline, candidate, message):
    with pytest.raises(ValueError, match=message):
        paired("right", baseline, candidate)


def test_confidence_is_a_share():
    with pytest.raises(ValueError, match="confidence 95"):
        paired("right", [1.0], [1.0], confidence=95)
