"""Which unit is in which arm: always the same one, in the shares that the weights say."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.variants import Arm, Split, Variant

SALT = "00112233445566778899aabbccddeeff"
units = st.text(min_size=1, max_size=20)
weights = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=5).filter(
    lambda found: sum(found) > 0
)


def split(*weights: float, salt: str = SALT) -> Split:
    arms = tuple(Arm(Variant(f"arm{index}"), weight) for index, weight in enumerate(weights))
    return Split("alias", arms, "experiment", salt)


@given(weights, units, units)
def test_a_unit_stays_in_its_arm_which_has_weight(given_weights, tenant, unit):
    shared = split(*given_weights)
    chosen = shared.choose(tenant, unit)
    assert chosen == shared.choose(tenant, unit)
    if len(given_weights) > 1:
        assert given_weights[int(chosen.name[3:])] > 0


@given(st.floats(0.02, 0.98), st.integers(0, 1000))
def test_the_shares_are_those_of_the_weights(share, first):
    shared, count = split(1 - share, share), 2000
    chosen = [shared.choose("t", f"user-{first + index}").name for index in range(count)]
    spread = math.sqrt(share * (1 - share) / count)
    assert abs(chosen.count("arm1") / count - share) < 6 * spread


@given(st.floats(0, 1), st.floats(0, 1), units)
def test_moving_a_border_moves_only_units_across_it(one, other, unit):
    low, high = sorted((one, other))
    before = split(1 - low, low).choose("t", unit).name
    after = split(1 - high, high).choose("t", unit).name
    assert not (before == "arm1" and after == "arm0") or math.isclose(low, high)


def test_tenants_and_experiments_are_assigned_apart():
    even = split(1, 1)
    again = split(1, 1, salt=SALT[::-1])
    users = [f"user-{index}" for index in range(400)]
    first = [even.choose("a", user).name for user in users]
    for others in ([even.choose("b", u).name for u in users],
                   [again.choose("a", u).name for u in users]):  # fmt: skip
        same = sum(x == y for x, y in zip(first, others, strict=True))
        assert 130 < same < 270
