"""`llmops logs` and `llmops costs` as a person runs them."""

import csv
import io
import time
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from deploy.commands import costs, logs
from deploy.commands.logs import csv_text
from deploy.uptime import append
from gateway import request_log
from gateway.audit import AuditFilter, entries
from gateway.database import open_database
from gateway.settings import load_settings
from tests.spooled_requests import final, record, shipper_of, write_segment

CONFIGURATION = """
upstreams: {vllm: {url: "http://127.0.0.1:1/v1"}}
models:
  small: {upstream: vllm, self_hosted: {node_usd_per_hour: 3.6, input_tokens_per_second: 100,
    output_tokens_per_second: 10}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "gateway.yaml").write_text(CONFIGURATION)
    return tmp_path


def llmops(home: Path, app, *arguments: str) -> Result:
    env = {"LLMOPS_HOME": str(home), "LLMOPS_CONFIG": str(home / "gateway.yaml")}
    return CliRunner().invoke(app, [*arguments], env=env)


def test_the_newest_requests_are_listed(home: Path) -> None:
    one, two = record(), record(status="rejected", http_status=429, input_tokens=None, model=None)
    write_segment(home / "spool", final(one))
    shipper_of(home).ship()
    write_segment(home / "spool", final(two))
    result = llmops(home, logs.app, "tail")
    first, second = result.output.splitlines()[1:]
    assert one.request_id in first
    assert "0.000000007" in first
    assert two.request_id in second
    assert "rejected 429" in second


def test_one_request_is_shown_whole(home: Path) -> None:
    one = record(tags={"a": "b"})
    write_segment(home / "spool", final(one, b'{"messages":["[bold]hi"]}', b"plain [red]text"))
    shown = llmops(home, logs.app, "show", f"chatcmpl-{one.request_id}")
    assert "[bold]hi" in shown.output
    assert "plain [red]text" in shown.output
    whole = orjson.loads(llmops(home, logs.app, "show", one.request_id, "--json").output)
    assert whole["cost_usd"] == "0.000000007"
    assert whole["request"] == {"messages": ["[bold]hi"]}
    missing = llmops(home, logs.app, "show", "nope")
    assert missing.exit_code == 1
    assert "no request 'nope'" in missing.stderr


def test_queries_in_three_forms(home: Path) -> None:
    write_segment(home / "spool", final(record(user="=cmd|'/C calc'!A0")))
    sql = 'SELECT "user", cost_usd, -1 AS minus FROM requests'
    assert "1 rows" in llmops(home, logs.app, "query", sql).output
    (row,) = orjson.loads(llmops(home, logs.app, "query", sql, "--format", "json").output)
    assert row == {"user": "=cmd|'/C calc'!A0", "cost_usd": "0.000000007", "minus": -1}
    lines = llmops(home, logs.app, "query", sql, "--format", "csv").output.splitlines()
    assert lines == ["user,cost_usd,minus", "'=cmd|'/C calc'!A0,0.000000007,-1"]
    refused = llmops(home, logs.app, "query", "COPY requests TO 'x'")
    assert refused.exit_code == 1
    assert "only one SELECT" in refused.stderr


@given(st.text(max_size=20))
def test_no_csv_cell_is_a_formula(text: str) -> None:
    written = csv_text(request_log.Result(["name"], [(text,)]))
    (_, row) = csv.reader(io.StringIO(written, newline=""))
    cell = row[0] if row else ""
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cell in (text, f"'{text}")


def test_an_export(home: Path) -> None:
    write_segment(home / "spool", final(record(ts=1_000_000)), final(record()))
    out = home / "out.jsonl"
    assert "2 requests" in llmops(home, logs.app, "export", "--out", str(out)).output
    since = ("--since", "1d")
    assert "1 requests" in llmops(home, logs.app, "export", *since, "--out", str(out)).output
    assert len(out.read_bytes().splitlines()) == 1


def test_keeping_the_table(home: Path) -> None:
    for _ in range(3):
        write_segment(home / "spool", final(record()))
        shipper_of(home).ship()
    assert "3 files merged" in llmops(home, logs.app, "compact").output
    assert "0 rows deleted" in llmops(home, logs.app, "retain").output


def test_an_erasure_is_done_and_audited_without_the_name(home: Path) -> None:
    write_segment(home / "spool", final(record(user="anna")), final(record(user="bert")))
    declined = llmops(home, logs.app, "erase", "--user", "anna")
    assert declined.exit_code == 1
    done = llmops(home, logs.app, "erase", "--user", "anna", "--yes")
    assert "1 rows cleared" in done.output, done.stderr
    env = {"LLMOPS_HOME": str(home), "LLMOPS_CONFIG": str(home / "gateway.yaml")}
    database = open_database(load_settings(env).database_url)
    with database.session() as session:
        (entry,) = entries(session, AuditFilter(action="log.erase"))
    database.close()
    assert "anna" not in str(entry)
    assert entry.change.evidence is not None
    assert entry.change.evidence["rows"] == 1


def test_costs_by_user_and_their_total(home: Path) -> None:
    write_segment(
        home / "spool",
        final(record(user="anna", cost_nano_usd=1)),
        final(record(user="bert", cost_nano_usd=2 * 10**9)),
    )
    lines = llmops(home, costs.app, "--by", "user", "--since", "7d").output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["bert", "anna", "total"]
    assert lines[-1].split()[-2:] == ["2.000000001", "0.000000000"]
    short = llmops(home, costs.app, "--by", "user", "--top", "1").output.splitlines()
    assert short[2].split()[:2] == ["(1", "others)"]
    assert short[2].split()[-2:] == ["0.000000001", "0.000000000"]
    assert short[-1].split()[-2:] == ["2.000000001", "0.000000000"]
    assert llmops(home, costs.app, "--by", "colour").exit_code == 2
    assert llmops(home, costs.app, "--since", "soon").exit_code == 2


def test_reconcile_with_given_and_with_known_hours(home: Path) -> None:
    write_segment(home / "spool", final(record(model="small", cost_nano_usd=10**9)))
    given = llmops(home, costs.app, "reconcile", "--node-hours", "2").output.split()
    assert "7.200000000" in given
    assert "6.200000000" in given
    named = llmops(home, costs.app, "reconcile", "--node-hours", "vllm=0.5").output.split()
    assert "0.800000000" in named
    assert llmops(home, costs.app, "reconcile", "--node-hours", "other=1").exit_code == 2
    (home / "run").mkdir()
    append(home / "run", "engine", "started", 1)
    time.sleep(0.02)
    append(home / "run", "engine", "stopped", 1)
    known = llmops(home, costs.app, "reconcile", "--since", "1h").output.split()
    node = Decimal(known[known.index("node") + 2])
    assert Decimal(0) < node < Decimal("0.1")
