"""The tests that drift rests on: how often they cry wolf, and what the textbooks say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from evals.shifts import (
    Side,
    design_effect,
    kolmogorov_distance,
    label_shift,
    mean_shift,
    number_shift,
    rank_shift,
    share_shift,
    users_worth,
)

REFERENCE, WINDOW, LEVEL = 1000, 400, 1e-4
FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def alone(count, start=0):
    """A user for each row."""
    return np.arange(start, start + count)


def bursts(random, count, start=0, mean=8):
    """Users with several rows each, one after the other."""
    sizes = random.geometric(1 / mean, count)
    return start + np.repeat(np.arange(count), sizes)[:count]


def values(random, users, alike):
    """Normal values, of which users share the part `alike` of the variance."""
    codes = users - users.min()
    own = random.normal(size=codes.max() + 1)[codes]
    return np.sqrt(alike) * own + np.sqrt(1 - alike) * random.normal(size=len(users))


def measured(kind, random, users, alike):
    """A shift between two samples of one distribution."""
    reference, window = users
    old, new = values(random, reference, alike), values(random, window, alike)
    if kind == "share":
        sides = Side((old > 1.3).astype(float), reference), Side((new > 1.3).astype(float), window)
        return share_shift("s", *sides, LEVEL, 0.0)
    if kind == "label":
        names = np.array(["en", "de", "fr"], dtype=object)
        cut = [names[np.digitize(side, (0.5, 1.6))] for side in (old, new)]
        return label_shift("s", cut[0], cut[1], users, LEVEL, 0.0)
    if kind == "mean":
        axes = [np.stack([values(random, one, alike) for _ in range(10)], axis=1) for one in users]
        return mean_shift("s", axes[0], axes[1], users, LEVEL, 0.0)
    measure = number_shift if kind == "number" else rank_shift
    return measure("s", Side(old, reference), Side(new, window), LEVEL, 0.0)


@pytest.mark.parametrize("alike", [None, 0.3, 0.8])
@pytest.mark.parametrize("kind", ["share", "label", "number", "rank", "mean"])
def test_chance_is_what_it_says_where_nothing_has_drifted(kind, alike):
    """Also where users send many rows that resemble each other."""
    random = np.random.default_rng(7)
    trials = 600
    chances = []
    for _ in range(trials):
        users = (alone(REFERENCE), alone(WINDOW, REFERENCE))
        if alike is not None:
            users = (bursts(random, REFERENCE), bursts(random, WINDOW, REFERENCE))
        chances.append(measured(kind, random, users, alike or 0.0).chance)
    for level in (0.1, 0.02):
        most = stats.binom.isf(1e-4, trials, level * 1.5)
        assert (np.array(chances) <= level).sum() <= most, f"{level}: {np.sort(chances)[:20]}"


@pytest.mark.parametrize("kind", ["share", "number", "rank", "mean"])
def test_bursts_would_cry_wolf_if_rows_counted_as_users(kind):
    """What the design effect is for: without it the same samples drift all the time."""
    random = np.random.default_rng(7)
    with_users, without = [], []
    for _ in range(150):
        users = (bursts(random, REFERENCE), bursts(random, WINDOW, REFERENCE))
        state = random.bit_generator.state
        with_users.append(measured(kind, random, users, 0.8).chance)
        random.bit_generator.state = state
        old, new = users
        rows = (alone(len(old)), alone(len(new), len(old)))
        without.append(_as_rows(kind, random, users, rows).chance)
    assert (np.array(without) < 0.02).mean() > 0.15
    assert (np.array(with_users) < 0.02).mean() < 0.08


def _as_rows(kind, random, users, rows):
    """The same values, each row taken for a user of its own."""
    old, new = (values(random, one, 0.8) for one in users)
    if kind == "share":
        sides = Side((old > 1.3).astype(float), rows[0]), Side((new > 1.3).astype(float), rows[1])
        return share_shift("s", *sides, LEVEL, 0.0)
    if kind == "mean":
        axes = [np.stack([values(random, one, 0.8) for _ in range(10)], axis=1) for one in users]
        return mean_shift("s", axes[0], axes[1], rows, LEVEL, 0.0)
    measure = number_shift if kind == "number" else rank_shift
    return measure("s", Side(old, rows[0]), Side(new, rows[1]), LEVEL, 0.0)


@settings(deadline=None)
@given(
    events=st.tuples(st.integers(0, 300), st.integers(0, 100)),
    level=st.sampled_from([0.05, 1e-3, 1e-6]),
)
def test_shares_are_fishers_test(events, level):
    reference, window = _zeros_and_ones(events[0], 300), _zeros_and_ones(events[1], 100)
    users = alone(300), alone(100, 300)
    shift = share_shift("s", Side(reference, users[0]), Side(window, users[1]), level, 0.0)
    table = [[events[1], 100 - events[1]], [events[0], 300 - events[0]]]
    assert shift.chance == pytest.approx(stats.fisher_exact(table, alternative="greater")[1])
    if shift.score > 0:
        assert shift.drifted == (shift.chance <= level)
    assert shift.low <= shift.score <= shift.high


def _zeros_and_ones(ones, rows):
    return np.repeat([1.0, 0.0], [ones, rows - ones])


@settings(deadline=None)
@given(
    one=st.lists(FINITE, min_size=4, max_size=40), other=st.lists(FINITE, min_size=4, max_size=40)
)
def test_the_distance_is_kolmogorovs(one, other):
    found = kolmogorov_distance(np.array(one), np.array(other))
    assert found == pytest.approx(stats.ks_2samp(one, other, method="asymp").statistic)


def test_the_mean_test_is_hotellings_in_one_dimension():
    random = np.random.default_rng(3)
    old, new = random.normal(size=(300, 1)), random.normal(0.2, 1, size=(200, 1))
    shift = mean_shift("s", old, new, (alone(300), alone(200, 300)), 0.01, 0.0)
    assert shift.chance == pytest.approx(stats.ttest_ind(old[:, 0], new[:, 0]).pvalue, rel=1e-6)


def test_the_area_is_mann_and_whitneys():
    random = np.random.default_rng(3)
    old, new = random.normal(size=400), random.normal(0.3, 1, size=200)
    shift = rank_shift("s", Side(old, alone(400)), Side(new, alone(200, 400)), 0.01, 0.0)
    found = stats.mannwhitneyu(new, old, alternative="greater", use_continuity=False)
    assert shift.score == pytest.approx(found.statistic / (400 * 200))
    assert shift.chance == pytest.approx(found.pvalue, rel=1e-6)


@settings(deadline=None)
@given(level=st.floats(1e-9, 0.2), least=st.floats(0, 0.5), seed=st.integers(0, 1000))
def test_it_drifted_where_chance_is_below_the_level_and_the_change_matters(level, least, seed):
    random = np.random.default_rng(seed)
    move = random.uniform(0, 0.5)
    users = alone(200), alone(120, 200)
    old, new = (
        Side(random.normal(where, 1, size=len(one)), one)
        for where, one in zip((0, move), users, strict=True)
    )
    for shift, floor in (
        (rank_shift("s", old, new, level, least), 0.5 + least),
        (number_shift("s", old, new, level, least), least),
    ):
        if shift.chance != pytest.approx(level, rel=1e-6) and shift.score != pytest.approx(floor):
            assert shift.drifted == (shift.chance < level and shift.score > floor)


@settings(deadline=None)
@given(copies=st.integers(1, 12))
def test_rows_that_are_copies_count_once(copies):
    random = np.random.default_rng(copies)
    rows = random.normal(size=60)
    side = Side(np.repeat(rows, copies), np.repeat(np.arange(60), copies))
    assert design_effect(side) == pytest.approx(copies)


def test_two_users_are_two_however_many_rows_they_have():
    side = Side(np.repeat([0.0, 1.0], 50), np.repeat([1, 2], 50))
    assert design_effect(side) == pytest.approx(50)


def test_a_share_of_a_side_that_is_less_than_one_user():
    """The design effect of the other side is more than this one has rows."""
    old = Side(np.repeat([0.0, 1.0], 500), np.repeat([1, 2], 500))
    new = Side(np.repeat([0.0, 1.0], [90, 10]), alone(100, 3))
    shift = share_shift("s", old, new, LEVEL, 0.0)
    assert not shift.drifted
    assert 0 < shift.chance <= 1


def test_one_user_with_half_of_the_rows_makes_many_worth_few():
    assert users_worth(alone(30)) == pytest.approx(30)
    assert users_worth(np.concatenate([np.zeros(200), alone(200, 1)])) == pytest.approx(4, abs=0.1)
    assert users_worth(np.empty(0)) == 0
