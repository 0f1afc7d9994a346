"""Up-time intervals: any history of signs gives intervals that make sense."""

import io
import itertools
import json
import xmlrpc.client
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import uptime
from deploy.uptime import Interval, Listener, Sign, intervals, read_signs

EVENTS = st.tuples(
    st.sampled_from(["engine", "redis"]), st.sampled_from(["started", "stopped"]), st.integers(0, 9)
)


@given(st.lists(EVENTS, max_size=30))
def test_intervals_of_any_history(history: list[tuple[str, str, int]]):
    ts = 0
    signs = []
    for part, event, gap in history:
        ts += gap
        signs.append(Sign(part, event, ts, 1))
    found = intervals(signs)
    starts = sum(sign.event == "started" for sign in signs)
    assert len(found) == starts
    for part in ("engine", "redis"):
        own = [interval for interval in found if interval.part == part]
        for earlier, later in itertools.pairwise(own):
            assert earlier.end is not None
            assert earlier.start <= earlier.end <= later.start
    assert [interval.start for interval in found] == sorted(item.start for item in found)


def test_a_part_without_an_end_ran_until_the_last_sign():
    signs = [
        Sign("engine", "started", 10, 1),
        Sign("redis", "started", 50, 2),
        Sign("engine", "started", 100, 3),
    ]
    assert intervals(signs) == [
        Interval("engine", 10, 50),
        Interval("redis", 50, None),
        Interval("engine", 100, None),
    ]


def test_a_torn_line_is_left_out(tmp_path: Path):
    uptime.append(tmp_path, "engine", "started", 7)
    with (tmp_path / uptime.FILE).open("a") as file:
        file.write('{"part": "engine", "ev')
    assert [(sign.part, sign.pid) for sign in read_signs(tmp_path)] == [("engine", 7)]


def test_what_is_open_is_closed_once(tmp_path: Path):
    uptime.append(tmp_path, "engine", "started", 7)
    uptime.close_open(tmp_path)
    uptime.close_open(tmp_path)
    assert [sign.event for sign in read_signs(tmp_path)] == ["started", "stopped"]


def test_no_file_is_no_history(tmp_path: Path):
    assert list(read_signs(tmp_path)) == []


def test_the_protocol_of_the_keeper(tmp_path: Path):
    def event(name: str, body: str) -> str:
        return f"ver:3.0 pool:uptime eventname:{name} len:{len(body)}\n{body}"

    own = "processname:uptime groupname:uptime from_state:STOPPED"
    part = "processname:engine groupname:engine from_state:STOPPED tries:0"
    source = io.StringIO(
        event("PROCESS_STATE_STARTING", own)
        + event("PROCESS_STATE_STARTING", part)
        + event("PROCESS_STATE_RUNNING", part)
        + event("PROCESS_STATE_EXITED", part)
        + event("PROCESS_STATE_EXITED", part)
    )
    sink = io.StringIO()
    nobody = xmlrpc.client.ServerProxy("http://127.0.0.1:1/RPC2")
    uptime.listen(Listener(tmp_path, nobody), source, sink)
    assert sink.getvalue() == "READY\nRESULT 2\nOK" * 5 + "READY\n"
    lines = [json.loads(line) for line in (tmp_path / uptime.FILE).read_text().splitlines()]
    assert [(line["part"], line["event"]) for line in lines] == [
        ("engine", "started"),
        ("engine", "stopped"),
    ]


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_no_group_is_killed_by_accident(pid: int):
    uptime.kill_group(pid)
