"""Sums in exact decimals, and the node's hours against what was booked."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.configuration import parse_configuration
from gateway.costs import (
    BadSince,
    UnknownDimension,
    costs,
    hours_between,
    reconcile,
    since_time,
    total,
)
from gateway.records import NANO_PER_USD
from gateway.request_log import LogReader
from tests.spooled_requests import final, record, shipper_of, write_segment

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
CONFIGURATION = """
upstreams: {vllm: {url: "http://127.0.0.1:1/v1"}, hosted: {url: "http://127.0.0.1:2/v1"}}
models:
  small: {upstream: vllm, self_hosted: {node_usd_per_hour: 1.5, input_tokens_per_second: 100,
    output_tokens_per_second: 10}}
  tuned: {upstream: vllm, self_hosted: {node_usd_per_hour: 1.5, input_tokens_per_second: 100,
    output_tokens_per_second: 10}}
  big: {upstream: hosted, price: {input: 1}}
"""


def reader_of(home: Path) -> LogReader:
    return LogReader(home / "spool", str(home / "log" / "requests"))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 10**17), min_size=1, max_size=12), st.data())
def test_sums_are_exact_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, nanos: list[int], data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("sums")
    cut = data.draw(st.integers(0, len(nanos)))
    records = [final(record(cost_nano_usd=nano, saved_nano_usd=nano // 3)) for nano in nanos]
    write_segment(home / "spool", *records[:cut])
    shipper_of(home).ship()
    write_segment(home / "spool", *records[cut:])
    (line,) = costs(reader_of(home), by="model")
    assert line.cost_usd == Decimal(sum(nanos)) / NANO_PER_USD
    assert line.saved_usd == Decimal(sum(nano // 3 for nano in nanos)) / NANO_PER_USD
    assert line.requests == len(nanos)


def test_every_dimension_sums_to_the_same(tmp_path: Path) -> None:
    write_segment(
        tmp_path / "spool",
        final(record(cost_nano_usd=5, user="a", team="x", prompt_name="p", prompt_version="2")),
        final(record(cost_nano_usd=7, user="b", team="x", prompt_name="p")),
        final(record(cost_nano_usd=11, status="rejected", input_tokens=None, model=None)),
    )
    shipper_of(tmp_path).ship()
    reader = reader_of(tmp_path)
    for by in ("model", "team", "key", "prompt", "user", "tenant", "target", "day"):
        whole = total(costs(reader, by=by))
        assert (whole.requests, whole.cost_usd) == (3, Decimal("0.000000023"))
        assert whole.input_tokens == 6
    assert {line.name for line in costs(reader, by="prompt")} == {"p", None, "p@2"}
    assert [line.name for line in costs(reader, by="user")] == [None, "b", "a"]
    with pytest.raises(UnknownDimension):
        costs(reader, by="request; DROP VIEW requests")


def test_since_counts_by_the_moment(tmp_path: Path) -> None:
    def at(moment: datetime) -> int:
        return int(moment.timestamp() * 1_000_000)

    for place, moment in enumerate((NOW, NOW - timedelta(days=7), NOW - timedelta(days=8))):
        write_segment(tmp_path / "spool", final(record(ts=at(moment), cost_nano_usd=10**place)))
    shipper_of(tmp_path).ship()
    reader = reader_of(tmp_path)
    found = costs(reader, since=since_time("7d", NOW))
    assert total(found).cost_usd == Decimal("0.000000011")
    assert costs(reader, since=NOW + timedelta(seconds=1)) == []
    assert total([]).cost_usd == 0


def test_spans_and_dates() -> None:
    assert since_time("90m", NOW) == NOW - timedelta(minutes=90)
    assert since_time("2w", NOW) == NOW - timedelta(weeks=2)
    assert since_time("2026-01-02") == datetime(2026, 1, 2, tzinfo=UTC)
    assert since_time("2026-01-02T03:00:00+01:00") == datetime(2026, 1, 2, 2, tzinfo=UTC)
    for text in ("", "7", "d", "7y", "-7d", "tomorrow", "99999999999d", "٣d"):
        with pytest.raises(BadSince):
            since_time(text, NOW)


def test_reconcile_shows_what_no_request_paid_for(tmp_path: Path) -> None:
    write_segment(
        tmp_path / "spool",
        final(record(model="small", cost_nano_usd=400_000_000)),
        final(record(model="tuned", cost_nano_usd=100_000_001)),
        final(record(model="big", cost_nano_usd=9_000_000_000)),
    )
    configuration = parse_configuration(CONFIGURATION)
    hours = {"vllm": Decimal("2.5")}
    (line,) = reconcile(reader_of(tmp_path), configuration, node_hours=hours)
    assert (line.upstream, line.models, line.requests) == ("vllm", ("small", "tuned"), 2)
    assert line.node_usd == Decimal("3.75")
    assert line.booked_usd == Decimal("0.500000001")
    assert line.idle_usd == Decimal("3.249999999")


def test_hours_are_cut_at_the_start() -> None:
    hour = 3_600_000_000
    start = datetime.fromtimestamp(3600, UTC)
    spans = [(0, hour // 2), (hour // 2, 2 * hour), (3 * hour, 4 * hour)]
    assert hours_between(spans, None) == Decimal("3")
    assert hours_between(spans, start) == Decimal("2")
