"""A worker's keys in memory: up to date within a second, and of use while the database is away."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError

from deploy.migrations import upgrade
from gateway import key_ring
from gateway.database import Database, next_version, now, open_database
from gateway.key_ring import KeyRing
from gateway.key_tables import KeyRow
from gateway.keys import NEW_KEY, KeyStore, digest, new_token
from tests.gateway_process import ROOT

pytest_plugins = ("tests.state_databases",)
SECRET = b"digest secret of the tests"

# Prints `1` or `0` (is the key in force?) with the time, whenever that changes.
WATCHER = """
import asyncio, sys, time
from gateway.database import open_database
from gateway.key_ring import KeyRing

async def main(url, secret, token):
    ring = KeyRing(open_database(url), secret.encode())
    ring.load()
    task = asyncio.create_task(ring.refresh_forever())
    last = None
    while True:
        key = ring.find(token)
        state = key is not None and key.usable(time.time())
        if state != last:
            print(int(state), time.time(), flush=True)
            last = state
        await asyncio.sleep(0.005)

asyncio.run(main(*sys.argv[1:]))
"""

# Loads a ring and prints: keys, seconds of CPU, megabytes, seconds for one look-up.
FULL_RING = """
import sys, time
import psutil
from gateway.database import open_database
from gateway.key_ring import KeyRing

url, secret, token = sys.argv[1:]
ring = KeyRing(open_database(url), secret.encode())
before = psutil.Process().memory_info().rss
started = time.process_time()
ring.load()
loaded = time.process_time() - started
held = psutil.Process().memory_info().rss - before
started = time.process_time()
for _ in range(1000):
    assert ring.find(token) is not None
print(len(ring), loaded, held / 1e6, (time.process_time() - started) / 1000)
"""


class Watchers:
    """Three processes that watch one key."""

    def __init__(self, url: str, token: str):
        self.children = [
            subprocess.Popen(
                [sys.executable, "-c", WATCHER, url, SECRET.decode(), token],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]

    def next(self) -> list[tuple[int, float]]:
        """What each says next: state and time."""
        seen = []
        for child in self.children:
            assert child.stdout is not None
            state, moment = child.stdout.readline().split()
            seen.append((int(state), float(moment)))
        return seen

    def stop(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database, SECRET)


@pytest.fixture
def ring(database: Database) -> KeyRing:
    return KeyRing(database, SECRET)


@pytest.fixture
def watched(store: KeyStore, database_url: str) -> Iterator[tuple[str, Watchers]]:
    store.team_new(actor="test", alias="blue")
    token, _ = store.generate(actor="test", team_id="blue")
    watchers = Watchers(database_url, token)
    yield token, watchers
    watchers.stop()


def test_a_revoked_key_stops_within_a_second_in_every_process(
    store: KeyStore, watched: tuple[str, Watchers]
) -> None:
    token, watchers = watched
    assert [state for state, _ in watchers.next()] == [1, 1, 1]
    steps = (
        (lambda: store.block(token, actor="test"), 0),
        (lambda: store.unblock(token, actor="test"), 1),
        (lambda: store.team_update("blue", actor="test", blocked=True), 0),
        (lambda: store.team_update("blue", actor="test", blocked=False), 1),
        (lambda: store.delete(token, actor="test"), 0),
    )
    for change, expected in steps:
        change()
        done = time.time()
        for state, moment in watchers.next():
            assert state == expected
            assert moment - done < 1


def test_it_knows_only_keys(store: KeyStore, ring: KeyRing) -> None:
    token, key = store.generate(actor="test")
    assert ring.find(token) is None, "nothing is known before the first load"
    ring.load()
    assert ring.find(token) == key
    for other in ("", "sk-", token[:-1], token + "a", token + "\n", "sk-\ud800" * 9, "x" * 10**6):
        assert ring.find(other) is None
    assert KeyRing(store.database, b"another secret").find(token) is None


def test_a_changed_team_changes_its_keys(store: KeyStore, ring: KeyRing) -> None:
    store.team_new(actor="test", alias="blue")
    token, _ = store.generate(actor="test", team_id="blue")
    ring.load()
    store.team_update("blue", actor="test", models=["a"], alias="navy")
    ring.load()
    key = ring.find(token)
    assert key is not None
    assert (key.team, key.may_use("a"), key.may_use("b")) == ("navy", True, False)
    store.team_delete("navy", actor="test")
    ring.load()
    assert ring.find(token) is None


async def test_with_the_database_away_the_known_keys_stay(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    upgrade(f"sqlite:///{path}")
    database = open_database(f"sqlite:///{path}")
    store = KeyStore(database, SECRET)
    token, _ = store.generate(actor="test")
    ring = KeyRing(database, SECRET)
    assert (ring.healthy, ring.servable) == (False, False)
    ring.load()
    assert (ring.healthy, ring.servable) == (True, True)
    refreshing = asyncio.create_task(ring.refresh_forever())
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    database.close()
    for part in list(tmp_path.glob("state.db*")):
        part.rename(hidden / part.name)
    await asyncio.sleep(key_ring.HEALTHY_SECONDS + 0.5)
    assert ring.find(token) is not None
    assert ring.stale_seconds > key_ring.HEALTHY_SECONDS
    assert (ring.healthy, ring.servable) == (False, True), "unknown keys are 503 now, not 401"
    database.close()
    for part in tmp_path.glob("state.db*"):
        part.unlink()
    for part in hidden.iterdir():
        part.rename(tmp_path / part.name)
    async with asyncio.timeout(10):
        await until_healthy(ring)
    refreshing.cancel()
    assert ring.find(token) is not None
    database.close()


async def until_healthy(ring: KeyRing) -> None:
    while not ring.healthy:
        await asyncio.sleep(0.05)


def test_the_first_load_fails_loudly(tmp_path: Path) -> None:
    with pytest.raises(SQLAlchemyError):
        KeyRing(open_database(f"sqlite:///{tmp_path / 'empty.db'}"), SECRET).load()


def test_a_database_restored_from_an_older_copy_is_read_anew(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    database = open_database(url)
    store = KeyStore(database, SECRET)
    ring = KeyRing(database, SECRET)
    old, _ = store.generate(actor="test")
    database.close()
    copy = {part.name: part.read_bytes() for part in tmp_path.glob("state.db*")}
    new, _ = store.generate(actor="test")
    store.generate(actor="test")
    ring.load()
    assert ring.find(new) is not None
    database.close()
    for part in tmp_path.glob("state.db*"):
        os.unlink(part)
    for name, content in copy.items():
        (tmp_path / name).write_bytes(content)
    ring.load()
    assert ring.find(old) is not None
    assert ring.find(new) is None
    database.close()


def test_a_hundred_thousand_keys(store: KeyStore) -> None:
    if store.database.engine.dialect.name != "sqlite":
        pytest.skip("measured once, on SQLite")
    token = new_token()
    with store.database.transaction() as session:
        version = next_version(session)
        row = {**NEW_KEY, "tenant": "t", "hint": "sk-…", "created_at": now(), "version": version}
        row["models"] = ["a", "b"]
        tokens = [token, *(f"sk-{number:043d}" for number in range(99_999))]
        rows = [
            {**row, "key_id": f"{n:036d}", "digest": digest(SECRET, t)}
            for n, t in enumerate(tokens)
        ]
        session.execute(insert(KeyRow), rows)
    url = store.database.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", FULL_RING, url, SECRET.decode(), token]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=90)
    keys, load_cpu_seconds, megabytes, find_seconds = map(float, run.stdout.split())
    assert keys == 100_000
    assert load_cpu_seconds < 10
    assert megabytes < 80
    assert find_seconds < 50e-6
