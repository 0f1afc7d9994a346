"""The reader: table and spool as one, each request once, and SQL that can reach nothing else."""

import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import orjson
import pytest

from gateway.configuration import Log
from gateway.request_log import LogReader, QueryRefused, presented
from gateway.spool import Spool
from tests.spooled_requests import final, record, shipper_of, write_segment

ROOT = Path(__file__).parent.parent.parent


def reader_of(home: Path) -> LogReader:
    return LogReader(home / "spool", str(home / "log" / "requests"))


def test_a_request_is_seen_from_its_writing_on_and_once(tmp_path: Path) -> None:
    reader = reader_of(tmp_path)
    assert reader.rows() == []
    spool = Spool(tmp_path / "spool", Log())
    one = record(user="anna")
    spool.begin(one)
    assert reader.rows() == []
    spool.finish(one, b'{"q":1}', b'{"a":1}')
    (before,) = reader.rows(columns=list(reader.columns))
    assert reader.row(one.request_id) == before
    spool.close()
    shipper = shipper_of(tmp_path)
    shipper.ship()
    (after,) = reader.rows(columns=list(reader.columns))
    assert reader.row(one.request_id) == before == after
    assert before["cost_usd"] == Decimal("0.000000007")
    assert before["ts"].tzinfo is not None


def test_a_row_in_table_and_spool_shows_once(tmp_path: Path) -> None:
    one = record()
    path = write_segment(tmp_path / "spool", final(one))
    kept = path.read_bytes()
    shipper_of(tmp_path).ship()
    path.write_bytes(kept)
    reader = reader_of(tmp_path)
    assert [row["request_id"] for row in reader.rows()] == [one.request_id]
    assert reader.query("SELECT count(*) FROM requests").rows == [(1,)]


@pytest.mark.parametrize("shipped", [False, True])
def test_any_form_of_the_id_finds_the_row(tmp_path: Path, shipped: bool) -> None:
    vllm = record()
    vllm.upstream_id = f"chatcmpl-{vllm.request_id}"
    other = record(upstream_id="gen-42")
    write_segment(tmp_path / "spool", final(record()), final(vllm), final(other))
    if shipped:
        shipper_of(tmp_path).ship()
    reader = reader_of(tmp_path)
    for name in (vllm.request_id, f"chatcmpl-{vllm.request_id}", f" {vllm.request_id.upper()} ",
                 f"cmpl-{vllm.request_id}"):  # fmt: skip
        row = reader.row(name)
        assert row is not None
        assert row["request_id"] == vllm.request_id
    found = reader.row("gen-42")
    assert found is not None
    assert found["request_id"] == other.request_id
    assert reader.row("nothing") is None
    assert reader.row("' OR true --") is None


def test_a_reader_never_misses_a_row_while_batches_are_committed(tmp_path: Path) -> None:
    reader = reader_of(tmp_path)
    written: list[str] = []
    stop = threading.Event()

    def ship() -> None:
        shipper = shipper_of(tmp_path)
        while not stop.is_set():
            shipper.ship()

    thread = threading.Thread(target=ship)
    thread.start()
    try:
        for number in range(20):
            one = record()
            write_segment(tmp_path / "spool", final(one, b'{"n":%d}' % number))
            written.append(one.request_id)
            found = reader.select("SELECT request_id, request FROM requests", bodies=True)
            names = [row[0] for row in found.rows]
            assert sorted(names) == sorted(written)
            assert reader.row(one.request_id) is not None
    finally:
        stop.set()
        thread.join()


def test_a_version_that_was_vacuumed_away_is_read_anew(tmp_path: Path) -> None:
    shipper = shipper_of(tmp_path)
    reader = reader_of(tmp_path)
    for _ in range(3):
        write_segment(tmp_path / "spool", final(record()))
        shipper.ship()
    assert len(reader.rows()) == 3
    with reader._connection(bodies=False) as stale:
        shipper.table.compact(shipper.table.crowded_days(2))
        shipper.table.vacuum(hours=0)
        with pytest.raises(duckdb.IOException):
            stale.execute("SELECT sum(cost_usd) FROM requests").fetchall()
    assert len(reader.rows()) == 3


REFUSED = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "COPY (SELECT 1) TO '/tmp/llmops-should-not-be.csv'",
    "COPY requests TO 'x.parquet'",
    "WITH x AS (COPY (SELECT 1) TO '/tmp/llmops-should-not-be.csv') SELECT 1",
    "ATTACH '/tmp/llmops-should-not-be.db'",
    "INSTALL httpfs", "LOAD httpfs",
    "SET enable_external_access = true", "RESET enable_external_access",
    "PRAGMA database_list", "CALL pragma_version()",
    "CREATE TABLE t AS SELECT 1", "DROP VIEW requests", "DELETE FROM spooled",
    "SELECT 1; SELECT 2", "SELECT 1; DROP VIEW requests", "", ";", "not sql",
    "EXPORT DATABASE '/tmp/llmops-should-not-be'", "EXPLAIN ANALYZE SELECT 1",
    "SELECT * FROM reader", "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT getenv('HOME')", "SELECT no_such_column FROM requests",
]  # fmt: skip


@pytest.mark.parametrize("sql", REFUSED)
@pytest.mark.parametrize("shipped", [False, True])
def test_sql_reaches_nothing_but_the_requests(tmp_path: Path, sql: str, shipped: bool) -> None:
    write_segment(tmp_path / "spool", final(record()))
    if shipped:
        shipper_of(tmp_path).ship()
    reader = reader_of(tmp_path)
    with pytest.raises(QueryRefused):
        reader.query(sql)
    assert not Path("/tmp/llmops-should-not-be.csv").exists()
    assert not Path("/tmp/llmops-should-not-be.db").exists()
    assert not (tmp_path / "log" / "requests" / "x.parquet").exists()


@pytest.mark.parametrize(
    "sql",
    ["COPY (SELECT 1) TO '{}/x.csv'", "WITH t AS (INSERT INTO spooled SELECT * FROM spooled"
     " RETURNING 1) SELECT * FROM t"],
)  # fmt: skip
def test_nothing_is_written_into_the_tables_own_folder(tmp_path: Path, sql: str) -> None:
    write_segment(tmp_path / "spool", final(record()))
    shipper_of(tmp_path).ship()
    folder = tmp_path / "log" / "requests"
    before = sorted(folder.rglob("*"))
    reader = reader_of(tmp_path)
    try:
        reader.query(sql.format(folder))
    except QueryRefused:
        pass
    assert sorted(folder.rglob("*")) == before
    assert len(reader.rows()) == 1


def test_a_query_returns_python_values(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", final(record(user="a\x00b"), b'{"n": 1}'))
    shipper_of(tmp_path).ship()
    write_segment(tmp_path / "spool", final(record(user="z"), b'{"n": 2}'))
    result = reader_of(tmp_path).query(
        "SELECT \"user\", cost_usd, request->>'n' AS n, ts > now() - INTERVAL 1 DAY AS recent,"
        " INTERVAL 1 DAY AS span, [1, 2] AS list FROM requests ORDER BY 1"
    )
    assert result.columns == ["user", "cost_usd", "n", "recent", "span", "list"]
    assert result.rows == [
        ("a\x00b", Decimal("0.000000007"), "1", True, "1 day", [1, 2]),
        ("z", Decimal("0.000000007"), "2", True, "1 day", [1, 2]),
    ]
    assert len(reader_of(tmp_path).query("FROM requests", limit=1).rows) == 1


def test_an_export_is_whole_and_in_order(tmp_path: Path) -> None:
    names = [record() for _ in range(4)]
    write_segment(tmp_path / "spool", *(final(one) for one in names[:2]))
    shipper_of(tmp_path).ship()
    write_segment(tmp_path / "spool", *(final(one) for one in names[2:]))
    reader = reader_of(tmp_path)
    out = tmp_path / "it's.jsonl"
    assert reader.export(out, "jsonl") == 4
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["request_id"] for line in lines] == [one.request_id for one in names]
    since = datetime.fromtimestamp(names[2].ts / 1_000_000, UTC)
    assert reader.export(tmp_path / "new.parquet", "parquet", since) == 2


def test_a_presented_row_is_json(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", final(record(tags={"a": "b"}), b'{"q": [1]}', b"no json"))
    (row,) = reader_of(tmp_path).rows(columns=list(reader_of(tmp_path).columns))
    shown = orjson.loads(orjson.dumps(presented(row)))
    assert (shown["request"], shown["response"], shown["tags"]) == (
        {"q": [1]},
        "no json",
        {"a": "b"},
    )
    assert shown["cost_usd"] == "0.000000007"


def test_without_deltalake_the_spool_is_read(tmp_path: Path) -> None:
    one = record()
    write_segment(tmp_path / "spool", final(one))
    code = (
        "import sys; sys.modules['deltalake'] = None; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path; from gateway.request_log import LogReader\n"
        f"reader = LogReader(Path({str(tmp_path / 'spool')!r}), 'log')\n"
        "print(reader.rows()[0]['request_id'], reader.query('SELECT ts FROM requests').rows[0][0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert run.stdout.startswith(one.request_id), run.stderr


def test_looking_up_one_of_many_is_quick(tmp_path: Path) -> None:
    shipper = shipper_of(tmp_path)
    wanted = []
    for _ in range(10):
        batch = [record() for _ in range(1500)]
        wanted.append(batch[7].request_id)
        write_segment(tmp_path / "spool", *(final(one, b"q" * 50, b"r" * 50) for one in batch))
        shipper.ship()
    reader = reader_of(tmp_path)
    reader.row(wanted[0])
    started = time.perf_counter()
    for name in wanted:
        row = reader.row(name)
        assert row is not None
        assert row["request_id"] == name
    assert (time.perf_counter() - started) / len(wanted) < 0.5
