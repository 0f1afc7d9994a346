"""Variants and splits as records: who is in which arm, what is refused, what a worker holds."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, update

from deploy.migrations import upgrade
from gateway.database import Database, next_version, open_database
from gateway.errors import BadRequest
from gateway.key_ring import KeyRing
from gateway.live import Live
from gateway.live_splits import LiveSplits
from gateway.splits import SplitRow, all_splits, find_split, put_split
from gateway.variants import Arm, Split, Variant, unit_of
from gateway.wire import overlaid

pytest_plugins = ("tests.state_databases",)
SALT = "00112233445566778899aabbccddeeff"
UNITS = 2000
units = st.text(min_size=1, max_size=20)
salts = st.binary(min_size=1, max_size=32).map(bytes.hex)
weight = st.just(0.0) | st.floats(0.001, 1000)


def weight_lists(size: int | None = None) -> st.SearchStrategy[list[float]]:
    lists = st.lists(weight, min_size=size or 1, max_size=size or 5)
    return lists.filter(lambda found: sum(found) > 0)


def split(*weights: float, salt: str = SALT) -> Split:
    arms = tuple(Arm(Variant(f"arm{index}"), share) for index, share in enumerate(weights))
    return Split("alias", arms, "experiment", salt)


def index_of(chosen: Variant) -> int:
    return int(chosen.name[3:])


@given(weight_lists(), units, units, salts)
def test_a_unit_stays_in_its_arm_which_has_weight(weights, tenant, unit, salt):
    chosen = split(*weights, salt=salt).choose(tenant, unit)
    assert chosen == split(*weights, salt=salt).choose(tenant, unit)
    assert weights[index_of(chosen)] > 0 or len(weights) == 1


@given(weight_lists(), salts)
def test_the_shares_are_those_of_the_weights(weights, salt):
    shared = split(*weights, salt=salt)
    chosen = [index_of(shared.choose("t", f"user-{number}")) for number in range(UNITS)]
    for index, given_weight in enumerate(weights):
        share = given_weight / sum(weights)
        spread = math.sqrt(share * (1 - share) * UNITS)
        assert abs(chosen.count(index) - share * UNITS) <= 6 * spread + 6


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(weight_lists(n), weight_lists(n))))
def test_units_cross_only_borders_that_move_and_only_their_way(both):
    before, after = both
    borders = [[part / sum(w) for part in accumulate(w)] for w in both]
    for number in range(50):
        was = index_of(split(*before).choose("t", f"u{number}"))
        now = index_of(split(*after).choose("t", f"u{number}"))
        for arm, (old, new) in enumerate(zip(*borders, strict=True)):
            if math.isclose(old, new):
                continue
            assert not (was <= arm < now) if new > old else not (now <= arm < was)


def test_a_larger_share_keeps_whom_it_had_in_the_order_of_the_arms():
    steps = [split(1 - share, share) for share in (0.0, 0.1, 0.5, 1.0)]
    had: set[int] = set()
    for step in steps:
        has = {n for n in range(UNITS) if index_of(step.choose("t", f"u{n}")) == 1}
        assert had <= has
        had = has
    assert had == set(range(UNITS))
    # The other order puts the candidate's share at the other end: other units are in it.
    mirrored = Split("alias", tuple(reversed(split(0.5, 0.5).arms)), None, SALT)
    apart = [
        split(0.5, 0.5).choose("t", f"u{n}") != mirrored.choose("t", f"u{n}") for n in range(9)
    ]
    assert all(apart)


def test_tenants_and_experiments_are_assigned_apart():
    even = split(1, 1)
    again = split(1, 1, salt=SALT[::-1])
    users = [f"user-{number}" for number in range(400)]
    first = [even.choose("a", user) for user in users]
    others = [even.choose("b", user) for user in users], [again.choose("a", user) for user in users]
    for other in others:
        assert 130 < sum(x == y for x, y in zip(first, other, strict=True)) < 270
    # Where the tenant ends and the unit begins is part of what is hashed.
    moved = [even.choose(user + ":x", "y") == even.choose(user, "x:y") for user in users]
    assert 130 < sum(moved) < 270


def test_who_sticks():
    assert unit_of("u", "e", "k") == "u"
    assert unit_of(None, "e", "k") == unit_of("", "e", "k") == "e"
    assert unit_of(None, None, "k") == unit_of("", "", "k") == "k"


def test_parameters_take_the_place_of_the_callers():
    body = {"model": "m", "temperature": 1.0, "max_completion_tokens": 500, "seed": 1}
    assert overlaid(body, {}) == body
    varied = overlaid(body, {"temperature": 0, "max_tokens": 24})
    assert varied == {"model": "m", "temperature": 0, "max_tokens": 24, "seed": 1}
    assert body["temperature"] == 1.0


GOOD = Split("alias", (Arm(Variant("a", "t", "x", parameters={"n": 1}), 1.0),), "e", SALT)


def one(**fields: Any) -> Split:
    return replace(GOOD, arms=(Arm(Variant(**{"name": "a"} | fields), 1.0),))


def parameters(**given: Any) -> Split:
    return one(parameters=given)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (split(), "every arm needs a name"),
        (replace(GOOD, arms=(*GOOD.arms, *GOOD.arms)), "every arm needs a name"),
        (split(-1, 2), "none below 0"),
        (split(0), "one at least above"),
        (split(float("nan"), 1), "one at least above"),
        (split(float("inf"), 1), "one at least above"),
        (replace(GOOD, salt="no hex"), "salt: pairs of hex digits"),
        (replace(GOOD, salt=""), "salt: pairs of hex digits"),
        (replace(GOOD, alias=""), "an alias has 1 to 128"),
        (replace(GOOD, alias="*"), "is not '\\*'"),
        (replace(GOOD, alias="a" * 129), "an alias has 1 to 128"),
        (one(name=""), "name: 1 to 256 printable"),
        (one(name="a\r\nx-evil: 1"), "name: 1 to 256 printable"),
        (one(adapter="a\nb"), "adapter: 1 to 256 printable"),
        (one(target="x" * 257), "target: 1 to 256 printable"),
        (one(target="*"), "an alias of its own"),
        (one(prompt_version="1"), "only in the split of a prompt"),
        (replace(one(adapter=None), alias="prompt:p"), "a prompt_version and nothing else"),
        (
            replace(one(prompt_version="1", adapter="x"), alias="prompt:p"),
            "a prompt_version and nothing else",
        ),
        (parameters(model="other"), "parameters.model: not for a variant"),
        (parameters(stream=True), "parameters.stream: not for a variant"),
        (parameters(user="u"), "parameters.user: not for a variant"),
        (parameters(api_base="http://evil"), "parameters.api_base: not for a variant"),
        (parameters(cache={}), "parameters.cache: not for a variant"),
        (parameters(temperature=3), "parameters.temperature must be"),
        (parameters(max_tokens=0), "parameters.max_tokens must be"),
    ],
)
def test_what_no_worker_could_carry_out_is_refused(sqlite, bad, said):
    with pytest.raises(BadRequest, match=said), sqlite.transaction() as session:
        put_split(session, bad)
    with sqlite.session() as session:
        assert not all_splits(session)


@pytest.mark.parametrize("logprobs", [True, 5])  # a switch of chat, a number of completions
def test_a_parameter_that_one_endpoint_takes_is_taken(sqlite, logprobs):
    put(sqlite, parameters(logprobs=logprobs, top_k=3, response_format={"type": "json_object"}))


@pytest.fixture
def sqlite(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


def put(database: Database, *splits: Split) -> None:
    with database.transaction() as session:
        for each in splits:
            put_split(session, each)


def test_a_split_comes_back_as_it_was_written(database: Database) -> None:
    put(database, GOOD, replace(GOOD, alias="other"))
    put(database, replace(GOOD, experiment_id=None, arms=split(1, 2.5).arms))
    with database.session() as session:
        changed = find_split(session, "alias")
        assert changed == replace(GOOD, experiment_id=None, arms=split(1, 2.5).arms)
        assert all_splits(session) == {"alias": changed, "other": replace(GOOD, alias="other")}
        assert find_split(session, "none") is None


def test_a_worker_holds_what_was_committed(database: Database, caplog) -> None:
    splits = LiveSplits(database)
    splits.load()
    assert not splits.current
    put(database, GOOD, replace(GOOD, alias="other"))
    splits.load()
    held = splits.current
    assert held == {"alias": GOOD, "other": replace(GOOD, alias="other")}
    with database.transaction() as session:
        next_version(session)  # as for a changed key
    splits.load()
    assert splits.current is held
    with database.transaction() as session:
        version = next_version(session)
        damage = {"arms": [{"variant": {"name": "a", "nonsense": 1}, "weight": 1}]}
        broken = update(SplitRow).where(SplitRow.alias == "alias")
        session.execute(broken.values(**damage, version=version))
        put_split(session, replace(GOOD, alias="other", experiment_id="later"))
    for _ in range(3):
        splits.load()
    assert splits.current["alias"] == GOOD, "a damaged row leaves the known split in force"
    assert splits.current["other"].experiment_id == "later"
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    with database.transaction() as session:
        next_version(session)
        session.execute(delete(SplitRow).where(SplitRow.alias == "alias"))
    splits.load()
    assert set(splits.current) == {"other"}


def live(folder: Path, *models: str) -> Live:
    path = folder / "gateway.yaml"
    price = {"input": 1, "output": 1}
    given = {
        "upstreams": {"up": {"url": "http://127.0.0.1:9/v1"}},
        "models": {name: {"upstream": "up", "price": price} for name in models},
    }
    path.write_text(yaml.safe_dump(given))
    return Live(path, {})


def test_a_missing_target_is_said_once_for_each_change(sqlite, tmp_path, caplog):
    splits = LiveSplits(sqlite)
    put(sqlite, one(target="gone"), replace(GOOD, alias="other", arms=split(1, 1).arms))
    splits.load()

    def said(snapshot) -> int:
        before = len(caplog.records)
        splits.check(snapshot)
        assert all("target gone" in record.message for record in caplog.records[before:])
        return len(caplog.records) - before

    without, having = live(tmp_path, "alias").current, live(tmp_path, "alias", "gone").current
    assert [said(s) for s in (without, without, having, having, without)] == [1, 0, 0, 0, 1]
    put(sqlite, one(target="gone", adapter="x"))
    splits.load()
    assert [said(without), said(without)] == [1, 0]
    wildcard = live(tmp_path, "alias", "*").current
    assert said(wildcard) == 1, "a wildcard is no configured target"


@asynccontextmanager
async def following(database: Database, folder: Path) -> AsyncIterator[tuple[KeyRing, LiveSplits]]:
    ring, splits = KeyRing(database, b"secret"), LiveSplits(database)
    ring.load()
    splits.load()
    loops = ring.refresh_forever(), splits.follow_forever(ring, live(folder, "alias"))
    tasks = [asyncio.create_task(loop) for loop in loops]
    yield ring, splits
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.01)


async def test_a_change_is_seen_within_a_second(database: Database, tmp_path: Path) -> None:
    async with following(database, tmp_path) as (_, splits):
        for number in range(5):
            changed = replace(GOOD, experiment_id=str(number))
            await asyncio.to_thread(put, database, changed)
            async with asyncio.timeout(1):
                await until(lambda changed=changed: splits.current.get("alias") == changed)


async def test_with_the_database_away_the_known_splits_stay(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    database = open_database(url)
    put(database, GOOD)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    async with following(database, tmp_path) as (ring, splits):
        database.close()
        for part in list(tmp_path.glob("state.db*")):
            part.rename(hidden / part.name)
        await until(lambda: not ring.healthy)
        assert splits.current == {"alias": GOOD}
        database.close()
        for part in tmp_path.glob("state.db*"):
            part.unlink()
        for part in hidden.iterdir():
            part.rename(tmp_path / part.name)
        async with asyncio.timeout(10):
            await until(lambda: ring.healthy)
        put(database, replace(GOOD, experiment_id="after"))
        async with asyncio.timeout(2):
            await until(lambda: splits.current["alias"].experiment_id == "after")
    database.close()
