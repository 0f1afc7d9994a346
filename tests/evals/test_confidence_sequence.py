"""Confidence sequences: they hold under constant peeking, and decide with few users."""

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.confidence_sequence import Sample, difference_interval, mean_interval

ALPHA = 0.05
MEANS = np.linspace(0.005, 0.995, 100)
values = st.lists(st.floats(0, 1), max_size=30)


@cache
def wealth(ones: int, zeros: int) -> Any:
    """What the bets of an arm of so many ones and zeros are worth, against each of MEANS."""
    return Sample.of([1.0] * ones + [0.0] * zeros).log_wealth(MEANS)


def first_exclusion(baseline: Any, candidate: Any) -> int | None:
    """Number of users, in turn from either arm, at which a difference of zero is excluded."""
    ones, users = [0, 0], [0, 0]
    for number in range(2 * len(baseline)):
        arm, position = number % 2, number // 2
        ones[arm] += int((baseline, candidate)[arm][position])
        users[arm] += 1
        both = sum(wealth(ones[one], users[one] - ones[one]) for one in (0, 1))
        if both.min() >= math.log(1 / ALPHA):
            return number + 1
    return None


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_equal_arms_are_seldom_ever_told_apart_however_often_one_looks(rate: float) -> None:
    generator = np.random.default_rng(20)
    runs = 200
    excluded = 0
    for _ in range(runs):
        arms = (generator.random((2, 250)) < rate).astype(int)
        excluded += first_exclusion(arms[0], arms[1]) is not None
    assert excluded / runs <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_a_fixed_interval_would_not_survive_the_peeking() -> None:
    """The test above can fail: the textbook interval, looked at after each user, errs often."""
    generator = np.random.default_rng(20)
    arms = (generator.random((200, 2, 250)) < 0.5).astype(int)
    users = np.arange(1, 251)
    means = arms.cumsum(axis=2) / users
    error = np.sqrt((means * (1 - means)).sum(axis=1) / users)
    apart = np.abs(means[:, 1] - means[:, 0]) > 1.96 * error
    assert apart[:, 20:].any(axis=1).mean() > 0.2


def test_a_large_difference_is_found_with_few_users() -> None:
    generator = np.random.default_rng(21)
    needed = []
    for _ in range(100):
        rates = np.array([[0.25], [0.75]])
        arms = (generator.random((2, 120)) < rates).astype(int)
        needed.append(first_exclusion(arms[0], arms[1]) or 999)
    assert np.median(needed) <= 50  # 25 in each arm
    assert np.percentile(needed, 80) <= 80
    assert np.percentile(needed, 95) <= 120


@pytest.mark.parametrize(
    "draw",
    [
        lambda generator, size: (generator.random(size) < 0.3).astype(float),
        lambda generator, size: generator.beta(6, 2, size),
        lambda generator, size: generator.choice([0.0, 0.25, 0.5, 0.75, 1.0], size),
    ],
    ids=["boolean", "skewed", "rating"],
)
def test_the_interval_covers_the_truth_at_every_look(draw: Callable[..., Any]) -> None:
    generator = np.random.default_rng(22)
    truth = float(draw(generator, 1_000_000).mean())
    missed = 0
    for _ in range(40):
        baseline, candidate = draw(generator, 300), draw(generator, 60)
        looks = [(30, 6), (60, 12), (150, 30), (300, 60)]
        missed += any(
            not (found.low <= 0 <= found.high) or not (mean.low <= truth <= mean.high)
            for first, second in looks
            for found in [
                difference_interval(Sample.of(baseline[:first]), Sample.of(candidate[:second]))
            ]
            for mean in [mean_interval(Sample.of(baseline[:first]))]
        )
    assert missed <= 4


@settings(deadline=None, max_examples=60)
@given(values, values)
def test_an_interval_holds_its_estimate_and_mirrors(
    first: list[float], second: list[float]
) -> None:
    one, other = Sample.of(first), Sample.of(second)
    found, mirrored = difference_interval(one, other), difference_interval(other, one)
    assert -1 <= found.low <= found.high <= 1
    assert found.low == pytest.approx(-mirrored.high, abs=1e-9)
    assert found.high == pytest.approx(-mirrored.low, abs=1e-9)
    if found.estimate is not None:
        assert found.low <= found.estimate <= found.high
    else:
        assert (not first) or (not second)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.randoms())
def test_a_mean_lies_in_its_interval_in_any_order(given_values: list[float], random: Any) -> None:
    shuffled = random.sample(given_values, len(given_values))
    found = mean_interval(Sample.of(given_values))
    again = mean_interval(Sample.of(shuffled))
    assert (found.low, found.high) == (again.low, again.high)
    assert 0 <= found.low <= float(np.mean(given_values)) <= found.high <= 1
    wide = mean_interval(Sample.of(given_values), alpha=0.001)
    assert wide.low <= found.low <= found.high <= wide.high


def test_the_difference_agrees_with_the_wealths() -> None:
    """What is outside of the interval is what the product of the bets refutes, and nothing else."""
    baseline, candidate = Sample.of([0.0] * 30 + [1.0] * 10), Sample.of([0.0] * 9 + [1.0] * 31)
    found = difference_interval(baseline, candidate, ALPHA)
    means = np.linspace(0.001, 0.999, 999)
    for difference in np.arange(-0.95, 0.951, 0.01):
        others = means + difference
        inside = (others > 0) & (others < 1)
        product = baseline.log_wealth(means[inside]) + candidate.log_wealth(others[inside])
        refuted = product.min() >= math.log(1 / ALPHA)
        if found.low + 0.01 < difference < found.high - 0.01:
            assert not refuted
        elif difference < found.low or difference > found.high:
            assert refuted


def test_nothing_is_known_without_values() -> None:
    nothing = Sample.of([])
    assert (mean_interval(nothing).low, mean_interval(nothing).high) == (0, 1)
    found = difference_interval(nothing, Sample.of([1.0] * 1000))
    assert found.estimate is None
    assert (found.low <= 0) and found.high == 1


@pytest.mark.parametrize("wrong", [[1.01], [-0.01], [math.nan], [0.5, math.inf]])
def test_values_outside_the_bounds_are_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        Sample.of(wrong)


def test_ten_thousand_users_are_judged_in_a_moment() -> None:
    generator = np.random.default_rng(23)
    ratings = generator.random((2, 5000)).tolist()
    difference_interval(Sample.of([0.5]), Sample.of([0.5]))
    began = time.process_time()
    found = difference_interval(Sample.of(ratings[0]), Sample.of(ratings[1]))
    assert time.process_time() - began < 2
    assert found.high - found.low < 0.06
