import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.training import FinetuneConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0}, {"alpha": 0}, {"epochs": 0}, {"batch_size": 0}, {"max_length": 1},
        {"warmup_steps": -1}, {"seed": -1}, {"checkpoint_steps": 0}, {"threads": 0},
        {"learning_rate": 0}, {"learning_rate": -1.0}, {"learning_rate": math.nan},
        {"learning_rate": math.inf},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_cannot_be(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))}: "):
        FinetuneConfig(**fields)


@given(st.integers(1, 500), st.integers(0, 600))
def test_the_rate_rises_then_falls_and_no_step_is_without_effect(steps, warmup):
    config = FinetuneConfig(warmup_steps=warmup)
    rates = [config.rate(done, steps) for done in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1)
    assert top == min(warmup, steps - 1)
    assert all(rate > 0 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert config.rate(steps, steps) == 0
