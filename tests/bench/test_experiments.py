"""The simulation of experiments decides what the intervals decide, and its claims can fail."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.confidence_sequence import Sample, difference_interval
from tests.bench.experiments import (
    ALPHA,
    decided_at,
    equal_arms,
    evidence,
    first_at,
    fixed_size,
    wealth_table,
)

TABLE = wealth_table(300)


@given(st.integers(1, 300), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_interval_never_leaves_out_zero_before_the_closed_form(
    users: int, first: float, second: float, seed: int
) -> None:
    arms = (np.random.default_rng(seed).random((2, users)) < [[first], [second]]).astype(int)
    interval = difference_interval(Sample.of(arms[0]), Sample.of(arms[1]), ALPHA)
    ones = arms.cumsum(axis=1)
    last = evidence(TABLE, ones[0], ones[1])[-1]
    if interval.low > 0 or interval.high < 0:
        assert first_at(np.array([last]), ALPHA) == 1


def test_a_large_difference_is_decided_and_none_is_not() -> None:
    generator = np.random.default_rng(5)
    arms = (generator.random((2, 300)) < [[0.2], [0.8]]).astype(int)
    users = decided_at(TABLE, arms)
    assert users is not None
    assert 5 < users < 60
    assert decided_at(TABLE, np.tile([0, 1], (2, 150))) is None


def test_a_fixed_test_needs_what_the_textbook_says() -> None:
    assert fixed_size((0.5, 0.6), 0.9) == pytest.approx(515, abs=2)
    sizes = [fixed_size((0.5, 0.6), power) for power in (0.5, 0.8, 0.95)]
    assert all(one < other for one, other in pairwise(sizes))


def test_a_claim_fails_where_evidence_is_made_too_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.experiments.USERS", 300)
    assert equal_arms(TABLE, 100, np.random.default_rng(6)).holds
    assert not equal_arms(TABLE + 1.5, 100, np.random.default_rng(6)).holds
