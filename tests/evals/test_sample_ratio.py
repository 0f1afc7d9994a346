"""The alarm on the arms' sizes: a fair bet, blind to what is planned, quick where much is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.sample_ratio import ALPHA, is_mismatch, log_evidence

WEIGHTS = st.floats(0.01, 0.99)


@given(st.integers(0, 200), WEIGHTS)
def test_the_evidence_is_a_fair_bet(units: int, weight: float) -> None:
    """Over all splits of so many units, as the weight makes them, it is 1 on average."""
    total = sum(
        math.exp(
            math.log(math.comb(units, ones))
            + ones * math.log(weight)
            + (units - ones) * math.log(1 - weight)
            + log_evidence(ones, units, weight)
        )
        for ones in range(units + 1)
    )
    assert total == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 5000), st.integers(0, 5000), WEIGHTS)
def test_the_arms_may_change_places(first: int, second: int, weight: float) -> None:
    one = log_evidence(first, first + second, weight)
    assert one == pytest.approx(log_evidence(second, first + second, 1 - weight), abs=1e-6)


def test_nobody_is_no_mismatch_and_gross_mistakes_show_soon() -> None:
    assert log_evidence(0, 0, 0.5) == pytest.approx(0)
    assert is_mismatch(0, 15, 0.5)
    assert is_mismatch(30, 330, 0.5)
    assert not is_mismatch(160, 330, 0.5)


def test_sizes_as_planned_seldom_ever_alarm_and_48_of_100_is_found() -> None:
    generator = np.random.default_rng(4)
    looks = range(100, 10_001, 100)

    def alarms(share: float) -> float:
        runs = generator.binomial(100, share, size=(200, 100)).cumsum(axis=1)
        found = [
            any(is_mismatch(int(ones), n, 0.5) for ones, n in zip(run, looks, strict=True))
            for run in runs
        ]
        return float(np.mean(found))

    assert alarms(0.5) <= ALPHA + 0.02
    assert alarms(0.48) >= 0.5
