"""Snapshots: frozen once, kept by DVC or lakeFS, fetched again, compared."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from deploy.migrations import upgrade
from gateway.configuration import ConfigurationError
from gateway.settings import load_settings
from pipelines.data_store import store_of
from pipelines.dvc_process import WorkspaceError
from pipelines.features import open_features
from pipelines.installation import Installation, open_installation
from pipelines.lakefs_store import LakeFSFailed
from pipelines.snapshot_difference import difference
from pipelines.snapshot_store import SnapshotMissing
from pipelines.snapshots import Snapshot, checkout, freeze, listed
from tests.gateway_process import configuration
from tests.pipelines.lakefs_server import KEY, REPOSITORY, SECRET, LakeFSServer

SINCE = datetime(2013, 2, 10, tzinfo=UTC)
UNTIL, LATER = datetime(2013, 2, 11, 12, tzinfo=UTC), datetime(2013, 2, 12, tzinfo=UTC)
Open = Callable[..., Installation]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Open]:
    """Opens installations in one home, as configured."""
    opened = []

    def open_it(**data: Any) -> Installation:
        given = configuration("http://127.0.0.1:9/v1", data=data)
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(given))
        keys = {"LAKEFS_ACCESS_KEY_ID": KEY, "LAKEFS_SECRET_ACCESS_KEY": SECRET}
        settings = load_settings({**os.environ, **keys, "LLMOPS_HOME": str(tmp_path)})
        upgrade(settings.database_url)
        manager = open_installation(settings)
        opened.append(manager)
        return manager.__enter__()

    yield open_it
    for manager in opened:
        manager.__exit__(None, None, None)


def same_files(snapshot: Snapshot, kept: dict[str, bytes]) -> bool:
    return {path.name: path.read_bytes() for path in snapshot.folder.iterdir()} == kept


def test_a_snapshot_is_frozen_once_and_can_be_fetched_again(home: Open) -> None:
    installation = home()
    assert listed(installation) == []
    first = freeze(installation, "flights", SINCE, UNTIL)
    kept = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    again = freeze(installation, "flights", SINCE, UNTIL)
    assert again == first
    assert first.folder == installation.settings.home / "data" / "flights" / first.id
    assert set(kept) == {"flights.parquet", "carrier_rates.parquet", "route_rates.parquet",
                         "weather.parquet", "manifest.json"}  # fmt: skip
    assert first.manifest.about["columns"]["weather.parquet"]["temp"] == "double"
    with open_features(first.folder):
        pass
    (told,) = listed(installation)
    assert (told["id"], told["source"], told["here"]) == (first.id, "flights", True)
    assert told["since"] == "2013-02-10T00:00:00+00:00"
    assert told["rows"] == sum(facts.rows for facts in first.manifest.files.values()) > 1000

    first.events.write_bytes(b"somebody edited it")
    assert same_files(checkout(installation, first.id[:8]), kept)
    shutil.rmtree(installation.settings.home / "data")  # the remote is still there
    assert [one["here"] for one in listed(installation)] == [False]
    assert same_files(checkout(installation, first.id), kept)
    shutil.rmtree(installation.settings.home / "data")
    shutil.rmtree(installation.settings.home / "dvc" / "files")
    with pytest.raises(
        SnapshotMissing,
        match=f"{first.id} is neither in DVC.s cache here nor.*--since",
    ):
        checkout(installation, first.id)
    assert not first.folder.exists()
    for wrong in ("ffffff", first.id[:3]):
        with pytest.raises(SnapshotMissing, match=f"no single snapshot '{wrong}'.*{first.id[:12]}"):
            checkout(installation, wrong)


def test_two_that_freeze_the_same_wait_for_each_other(home: Open) -> None:
    installation = home()
    data = installation.settings.home / "data"
    data.mkdir()
    with ThreadPoolExecutor(2) as pool, (data / ".flights.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        under_way = [pool.submit(freeze, installation, "flights", SINCE, UNTIL) for _ in range(2)]
        until = time.monotonic() + 60
        while len(list(data.glob("flights/.*.new/manifest.json"))) < 2:
            assert time.monotonic() < until and not any(one.done() for one in under_way)
            time.sleep(0.02)
        time.sleep(0.2)
        assert not list(data.glob("flights/[0-9a-f]*"))
        fcntl.flock(lock, fcntl.LOCK_UN)
        first, second = (one.result() for one in under_way)
    assert first == second
    assert {path.name for path in (data / "flights").iterdir() if path.is_dir()} == {first.id}


def test_the_remotes_copy_of_what_leads_to_a_snapshot_is_made_first(home: Open) -> None:
    installation = home()
    pins = installation.settings.home / "dvc" / "pins"
    pins.parent.mkdir()
    pins.write_text("in the way, as if it were killed there")
    with pytest.raises(OSError, match="pins"):
        freeze(installation, "flights", SINCE, UNTIL)
    pins.unlink()
    made = freeze(installation, "flights", SINCE, UNTIL)
    assert (pins / "data" / "flights" / f"{made.id}.dvc").exists()


def test_what_cannot_be_frozen_leaves_nothing(home: Open) -> None:
    installation = home()
    with pytest.raises(ConfigurationError, match=r"no source 'trains' \(there are: flights\)"):
        freeze(installation, "trains")
    with pytest.raises(ConfigurationError, match="none was due"):
        freeze(installation, "flights", LATER, SINCE)
    assert not list((installation.settings.home / "data" / "flights").iterdir())


def test_a_remote_that_is_away_is_said_and_made_up_for(home: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    installation = home(remote=str(tmp_path / "file" / "dvc"))
    with pytest.raises(WorkspaceError, match="dvc push"):
        freeze(installation, "flights", SINCE, UNTIL)
    assert listed(installation) == []
    (tmp_path / "file").unlink()
    made = freeze(installation, "flights", SINCE, UNTIL)
    assert [one["id"] for one in listed(installation)] == [made.id]


def test_a_bucket_that_is_away_is_said(home: Open) -> None:
    installation = home(remote="s3://bucket/data", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(WorkspaceError, match="credentials"):
        freeze(installation, "flights", SINCE, UNTIL)
    with pytest.raises(ConfigurationError, match="either remote or lakefs"):
        store_of(home(remote="s3://bucket", lakefs={"url": "http://x", "repository": "r"}))


def test_the_difference_of_two_snapshots(home: Open) -> None:
    installation = home()
    before = freeze(installation, "flights", SINCE, UNTIL)
    after = freeze(installation, "flights", SINCE.replace(hour=20), LATER)
    old, new = pd.read_parquet(before.events), pd.read_parquet(after.events)
    flights, *features = difference(before, after)
    both = set(old["flight_id"]) & set(new["flight_id"])
    assert flights.file == "flights.parquet"
    assert flights.rows == (len(old), len(new))
    assert (flights.added, flights.gone) == (len(new) - len(both), len(old) - len(both))
    unknown = old[old["flight_id"].isin(both) & (old["known_at"] > UNTIL)]
    assert flights.changed == len(unknown) > 50  # their outcome is known now
    late = next(one for one in flights.columns if one.name == "late")
    assert late.missing == pytest.approx((old["late"].isna().mean(), new["late"].isna().mean()))
    assert late.means is not None and late.means[1] == pytest.approx(new["late"].dropna().mean())
    assert {one.file for one in features} == before.manifest.files.keys() - {flights.file}
    for table in difference(before, before):
        assert (table.added, table.gone, table.changed) == (0, 0, 0)
        assert {column.distance for column in table.columns} == {0.0}


@contextmanager
def lakefs(home: Open) -> Iterator[tuple[LakeFSServer, Installation]]:
    with LakeFSServer() as server:
        yield server, home(lakefs={"url": server.url, "repository": REPOSITORY})


def test_lakefs_has_a_branch_for_each_run_and_merges_what_the_gate_passed(home: Open) -> None:
    with lakefs(home) as (server, installation):
        store = store_of(installation)
        made = freeze(installation, "flights", SINCE, UNTIL, run="1")
        assert freeze(installation, "flights", SINCE, UNTIL, run="1") == made
        other = freeze(installation, "flights", SINCE, LATER, run="2")
        alone = freeze(installation, "flights", SINCE.replace(hour=9), LATER)
        assert set(server.kept.branches) == {"main", "run-1", "run-2", f"run-{alone.id}"}
        assert server.kept.files("main") == {}
        ids = {made.id, other.id, alone.id}
        assert {one["id"] for one in listed(installation)} == ids  # two pages of tags
        assert {one["rows"] for one in listed(installation)} >= {made.manifest.rows}

        store.accept(made.id, "1")
        merged = server.kept.branches["main"]
        assert {name.split("/")[1] for name in server.kept.files("main")} == {made.id}
        assert server.kept.commits[merged]["message"] == "The gate passed run 1"
        store.accept(made.id, "1")
        assert server.kept.branches["main"] == merged
        freeze(installation, "flights", SINCE, LATER, run="3")  # what run 2 froze
        store.accept(other.id, "3")
        assert {name.split("/")[1] for name in server.kept.files("main")} == {made.id, other.id}

        kept = {path.name: path.read_bytes() for path in made.folder.iterdir()}
        shutil.rmtree(installation.settings.home / "data")
        assert same_files(checkout(installation, made.id), kept)
        with pytest.raises(SnapshotMissing, match="no single snapshot 'ffffff'"):
            checkout(installation, "ffffff")
        merged = server.kept.branches["main"]
        store.accept(made.id, "9")  # whose pass had nothing to freeze
        assert server.kept.branches["main"] == merged
        with pytest.raises(LakeFSFailed, match=r"run-10 could not be merged: code: 404"):
            store.accept("f" * 32, "10")
    with pytest.raises(LakeFSFailed, match="could not be listed"):
        listed(installation)


def test_another_machine_that_is_faster_with_the_tag_is_no_trouble(
    home: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lakefs(home) as (server, installation):
        made = freeze(installation, "flights", SINCE, UNTIL, run="1")
        tags, commit = server.kept.tags, server.kept.commit
        theirs = tags.pop(f"snapshot-{made.id}")

        def commit_after(*given: Any) -> tuple[int, Any]:
            tags[f"snapshot-{made.id}"] = theirs
            return commit(*given)

        monkeypatch.setattr(server.kept, "commit", commit_after)
        assert freeze(installation, "flights", SINCE, UNTIL, run="2") == made
        assert tags == {f"snapshot-{made.id}": theirs}
        store_of(installation).accept(made.id, "2")
        assert {name.split("/")[1] for name in server.kept.files("main")} == {made.id}


def test_lakefs_keys_come_from_the_environment(home: Open) -> None:
    with LakeFSServer() as server:
        given = {"url": server.url, "repository": REPOSITORY}
        installation = home(lakefs={**given, "secret_env": "LAKEFS_ACCESS_KEY_ID"})
        with pytest.raises(LakeFSFailed, match="code: 401"):
            listed(installation)
        with pytest.raises(ConfigurationError, match="UNSET_KEY is not in the environment"):
            listed(home(lakefs={**given, "key_env": "UNSET_KEY"}))
