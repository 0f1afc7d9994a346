"""Ages, compaction and erasure: what is gone is gone from every file."""

import os
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import duckdb
import orjson
import pytest

from gateway import retention
from gateway.batches import segment_paths
from gateway.configuration import Configuration, Log, load_configuration
from gateway.log_work import carry_out
from gateway.orders import Order, OrderTimeout
from gateway.request_log import LogReader
from gateway.settings import Settings, load_settings
from gateway.spool import Spool
from tests.spooled_requests import final, intent, record, shipper_of, write_segment

ROOT = Path(__file__).parent.parent.parent
DAY_US = 86_400 * 1_000_000
SECRET = "very-private-words"


def now_us() -> int:
    return time.time_ns() // 1000


def reader_of(home: Path) -> LogReader:
    return LogReader(home / "spool", str(home / "log" / "requests"))


def all_rows(home: Path) -> list[dict]:
    reader = reader_of(home)
    return reader.rows(columns=list(reader.columns), order="ts, request_id")


def settings_of(home: Path) -> tuple[Settings, Configuration]:
    path = home / "gateway.yaml"
    path.write_text(
        "upstreams: {}\nmodels: {}\nlog: {commit_seconds: 0.05, segment_seconds: 0.2}\n"
    )
    settings = load_settings({"LLMOPS_HOME": str(home), "LLMOPS_CONFIG": str(path)})
    return settings, load_configuration(path)


def files_with(home: Path, user: str) -> list[Path]:
    """Files that still hold the user or the bodies, decompressed where they are Parquet."""
    found = []
    for path in home.rglob("*"):
        if not path.is_file() or path.name == "erasures.json":
            continue
        if path.suffix == ".parquet" and "_delta_log" not in path.parts:
            text = str(duckdb.execute("FROM read_parquet(?)", [str(path)]).fetchall())
        else:
            text = path.read_bytes().decode(errors="replace")
        if user in text or SECRET in text:
            found.append(path)
    return found


def test_rows_and_bodies_have_ages_of_their_own(tmp_path: Path) -> None:
    young, middle, old = (record(ts=now_us() - days * DAY_US) for days in (0, 20, 200))
    write_segment(
        tmp_path / "spool", *(final(one, SECRET.encode()) for one in (young, middle, old))
    )
    shipper = shipper_of(tmp_path)
    shipper.ship()
    log = Log(retain_bodies_days=7, retain_days=90)
    done = retention.retain(shipper.table, log, tmp_path / "spool")
    assert (done["rows_deleted"], done["bodies_cleared"]) == (1, 1)
    rows = {row["request_id"]: row for row in all_rows(tmp_path)}
    assert set(rows) == {young.request_id, middle.request_id}
    assert rows[young.request_id]["request"] == SECRET
    assert rows[middle.request_id]["request"] is None
    assert rows[middle.request_id]["cost_usd"] == Decimal("0.000000007")
    again = retention.retain(shipper.table, log, tmp_path / "spool")
    assert (again["rows_deleted"], again["bodies_cleared"], again["files_removed"]) == (0, 0, 0)


def test_nothing_has_an_age_by_default(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", final(record(ts=now_us() - 3000 * DAY_US)))
    shipper = shipper_of(tmp_path)
    shipper.ship()
    shipper.keep_house()
    assert len(all_rows(tmp_path)) == 1


def test_compaction_keeps_every_row_and_few_files(tmp_path: Path) -> None:
    shipper = shipper_of(tmp_path)
    for _ in range(6):
        write_segment(tmp_path / "spool", final(record()), final(record()))
        shipper.ship()
    before = all_rows(tmp_path)
    assert len(shipper.table.files()) >= 6
    done = shipper.obey(Order("compact"))
    assert done["files_merged"] >= 6
    assert len(shipper.table.files()) <= 2
    assert all_rows(tmp_path) == before


def test_many_small_files_are_merged_without_being_asked(tmp_path: Path) -> None:
    shipper = shipper_of(tmp_path)
    for _ in range(49):
        write_segment(tmp_path / "spool", final(record()))
        shipper.ship()
    shipper.tidy()
    assert len(shipper.table.files()) <= 4
    assert len(all_rows(tmp_path)) == 49


@pytest.mark.parametrize("delete_rows", [False, True])
def test_a_user_is_forgotten_everywhere(tmp_path: Path, delete_rows: bool) -> None:
    user = 'o\'brien "x" \\ %_'
    tags = {"mail": user}
    mine = [record(user=user, tags=tags, episode_id="e", contexts=[SECRET]) for _ in range(3)]
    other = record(user="anna")
    spool = tmp_path / "spool"
    write_segment(spool, final(mine[0], SECRET.encode(), SECRET.encode()), final(other, b"kept"))
    shipper = shipper_of(tmp_path)
    shipper.ship()
    bad = record(user=user, input_tokens="poison")
    write_segment(spool, final(mine[1], SECRET.encode()), final(bad, SECRET.encode()))
    done = shipper.obey(Order("erase", user=user, before=now_us(), delete_rows=delete_rows))
    assert done["quarantined"] == 1
    rows = all_rows(tmp_path)
    assert len(rows) == (1 if delete_rows else 3)
    for row in rows:
        assert (row["user"], row["request"]) in ((None, None), ("anna", "kept"))
    kept = sum(row["cost_usd"] for row in rows)
    assert delete_rows or kept == Decimal("0.000000021")
    assert files_with(tmp_path, "brien") == []


def test_what_was_under_way_is_forgotten_when_it_comes(tmp_path: Path) -> None:
    shipper = shipper_of(tmp_path)
    spool = Spool(tmp_path / "spool", Log())
    under_way = record(user="anna")
    spool.begin(under_way)
    shipper.obey(Order("erase", user="anna", before=now_us()))
    spool.finish(under_way, SECRET.encode(), b"")
    later = record(user="anna", ts=now_us() + 1)
    spool.finish(later, b"after", b"")
    spool.close()
    shipper_of(tmp_path).ship()
    first, second = all_rows(tmp_path)
    assert (first["user"], first["request"], first["status"]) == (None, None, "ok")
    assert (second["user"], second["request"]) == ("anna", "after")


def test_a_command_does_the_work_itself_if_no_shipper_runs(tmp_path: Path) -> None:
    settings, given = settings_of(tmp_path)
    write_segment(tmp_path / "spool", intent(record()), final(record(user="anna")))
    done = carry_out(Order("erase", user="anna", before=now_us()), settings, given)
    assert done["by"] == "this command"
    assert segment_paths(tmp_path / "spool") == []
    assert [row["user"] for row in all_rows(tmp_path)] == [None, None]


def test_a_running_shipper_carries_out_what_a_command_asks(tmp_path: Path) -> None:
    settings, given = settings_of(tmp_path)
    env = {**os.environ, "LLMOPS_HOME": str(tmp_path), "LLMOPS_CONFIG": str(settings.config_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.shipper"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    )
    try:
        alive = tmp_path / "run" / "shipper.alive"
        while not alive.exists():
            assert process.poll() is None
            time.sleep(0.02)
        write_segment(tmp_path / "spool", final(record(user="anna")))
        order = Order("erase", user="anna", before=now_us())
        done = carry_out(order, settings, given, seconds=20)
        assert done["by"] == "the running shipper"
        assert [row["user"] for row in all_rows(tmp_path)] == [None]
        with pytest.raises(OrderTimeout):
            carry_out(Order("compact"), settings, given, seconds=0)
        status = orjson.loads((tmp_path / "run" / "shipper.json").read_bytes())
        assert status["pid"] == process.pid
    finally:
        process.terminate()
        assert process.wait(20) == 0
