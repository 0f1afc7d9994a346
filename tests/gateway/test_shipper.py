"""The shipper: each record reaches the table exactly once, and nothing blocks its neighbours."""

import os
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.batches import MANIFEST, QUARANTINE, Batches, segment_paths
from gateway.configuration import Log
from gateway.log_table import LogTable
from gateway.records import Status
from gateway.request_log import LogReader
from gateway.segment import Kind, encode
from gateway.shipper import SpoolTaken, spool_lock
from gateway.spool import Spool
from tests.spooled_requests import final, intent, record, shipper_of, write_segment

ROOT = Path(__file__).parent.parent.parent


def table_rows(home: Path) -> list[dict]:
    """What is in the table alone, in the order of arrival."""
    reader = LogReader(home / "nothing", str(home / "log" / "requests"))
    return reader.rows(columns=list(reader.columns), order="ts, request_id")


def quarantined(home: Path) -> list[dict]:
    folder = home / "spool" / QUARANTINE
    return [orjson.loads(line) for path in folder.glob("*.jsonl") for line in path.open("rb")]


def test_a_sealed_segment_becomes_rows_and_is_removed(tmp_path: Path) -> None:
    one = record(
        user="anna", tags={"team": "red", "a": "b"}, contexts=[{"id": 1}], ttft_ms=1.5, stream=False
    )
    write_segment(tmp_path / "spool", intent(one), final(one, b'{"q":1}', b'{"a":"\xc3\xa9"}'))
    assert shipper_of(tmp_path).ship() == 1
    (row,) = table_rows(tmp_path)
    assert row["request_id"] == one.request_id
    assert int(row["ts"].timestamp() * 1_000_000) == one.ts
    assert row["date"] == row["ts"].date()
    assert (row["cost_usd"], row["saved_usd"]) == (Decimal("0.000000007"), Decimal(0))
    assert (row["request"], row["response"]) == ('{"q":1}', '{"a":"é"}')
    assert (row["tags"], row["contexts"]) == ('{"a":"b","team":"red"}', '[{"id":1}]')
    assert (row["status"], row["http_status"], row["stream"]) == ("ok", 200, False)
    assert segment_paths(tmp_path / "spool") == []
    assert not (tmp_path / "spool" / MANIFEST).exists()


def test_a_living_writers_segment_is_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Log())
    spool.begin(record())
    spool.finish(record(), b"", b"")
    assert shipper_of(tmp_path).ship() == 0
    spool.close()
    assert shipper_of(tmp_path).ship() == 2


def test_a_stream_is_kept_as_the_completed_object(tmp_path: Path) -> None:
    chunk = {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "x"}}],
    }
    body = b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"
    write_segment(tmp_path / "spool", final(record(stream=True), b"{}", body))
    shipper_of(tmp_path).ship()
    (row,) = table_rows(tmp_path)
    response = orjson.loads(row["response"])
    assert response["object"] == "chat.completion"
    assert response["choices"][0]["message"]["content"] == "x"


def test_a_long_response_comes_from_its_part_which_is_removed(tmp_path: Path) -> None:
    one = record(response_part="part-1")
    write_segment(tmp_path / "spool", final(one, b"{}", b""))
    part = tmp_path / "spool" / "parts" / "part-1"
    part.write_bytes(b'{"long":true}')
    shipper_of(tmp_path).ship()
    assert table_rows(tmp_path)[0]["response"] == '{"long":true}'
    assert not part.exists()


def test_a_part_is_never_a_path(tmp_path: Path) -> None:
    secret = tmp_path / "spool" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    write_segment(tmp_path / "spool", final(record(response_part="../secret"), b"{}", b""))
    shipper_of(tmp_path).ship()
    assert table_rows(tmp_path)[0]["response"] is None
    assert secret.exists()


def test_a_dead_writers_open_intent_is_an_interrupted_request(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    done, cut, carried = record(), record(stream=True), record()
    write_segment(spool, intent(carried), intent(done), final(done), writer="w", sequence=1)
    write_segment(spool, intent(carried), intent(cut), final(carried), writer="w", sequence=2)
    (spool / "parts" / cut.request_id).write_bytes(b"so far")
    shipper = shipper_of(tmp_path)
    assert shipper.ship() == 3
    rows = {row["request_id"]: row for row in table_rows(tmp_path)}
    assert rows[cut.request_id]["status"] == Status.INTERRUPTED
    assert rows[cut.request_id]["response"] == "so far"
    assert rows[cut.request_id]["cost_usd"] == 0
    assert rows[done.request_id]["status"] == rows[carried.request_id]["status"] == Status.OK
    assert shipper.total.interrupted == 1
    assert list((spool / "parts").iterdir()) == []


def test_a_segment_that_is_not_its_writers_last_interrupts_nothing(tmp_path: Path) -> None:
    live = Spool(tmp_path / "spool", Log(segment_bytes=4096))
    under_way = record()
    live.begin(under_way)
    live.finish(record(), b"x" * 5000, b"")
    # The writer lets go of the first segment when it has synced it; here at once.
    os.close(live._retired.pop().descriptor)
    assert shipper_of(tmp_path).ship() == 1
    live.finish(under_way, b"", b"")
    live.close()
    assert shipper_of(tmp_path).ship() == 1
    assert [row["status"] for row in table_rows(tmp_path)] == ["ok", "ok"]


@pytest.mark.parametrize("committed", [False, True])
def test_a_batch_that_was_fixed_before_a_crash_is_finished_once(
    tmp_path: Path, committed: bool
) -> None:
    first = write_segment(tmp_path / "spool", *(final(record()) for _ in range(5)))
    batches = Batches(tmp_path / "spool")
    batch = batches.fix(1)
    assert batch is not None
    if committed:
        kept = first.read_bytes()
        shipper_of(tmp_path).ship()
        first.write_bytes(kept)
        content = {"number": 1, "app_id": batch.app_id, "segments": [first.name]}
        (tmp_path / "spool" / MANIFEST).write_bytes(orjson.dumps(content))
    write_segment(tmp_path / "spool", final(record()))
    shipper_of(tmp_path).ship()
    assert len(table_rows(tmp_path)) == 6
    assert segment_paths(tmp_path / "spool") == []


def test_the_batch_number_survives_checkpoints_and_vacuum(tmp_path: Path) -> None:
    for _ in range(3):
        write_segment(tmp_path / "spool", final(record()))
        shipper_of(tmp_path).ship()
    table = LogTable(str(tmp_path / "log" / "requests"))
    table.vacuum(hours=0)
    for path in (tmp_path / "log" / "requests" / "_delta_log").glob("0*.json"):
        if int(path.stem) < table.open().version():
            path.unlink()
    app_id = Batches(tmp_path / "spool").app_id
    assert LogTable(str(tmp_path / "log" / "requests")).last_batch(app_id) == 3


def test_the_same_request_twice_in_a_batch_is_one_row(tmp_path: Path) -> None:
    one = record()
    write_segment(tmp_path / "spool", final(one), final(one))
    shipper = shipper_of(tmp_path)
    assert shipper.ship() == 1
    assert shipper.total.duplicates == 1


def test_a_record_that_cannot_be_stored_does_not_block_its_neighbours(tmp_path: Path) -> None:
    good = [record(), record()]
    bad = [
        record(ts=-1), record(ts=10**30), record(input_tokens=2**63), record(user=["a"]),
        record(cost_nano_usd=10**18), record(request_id=""), record(stream="yes"),
        record(latency_ms="fast"), record(model=5, ts="now"),
    ]  # fmt: skip
    broken = [
        b"".join(encode(Kind.FINAL, orjson.dumps(vars_of(one)), b"asked", b"told")) for one in bad
    ]
    write_segment(tmp_path / "spool", final(good[0]), *broken, final(good[1]))
    shipper = shipper_of(tmp_path)
    assert shipper.ship() == 2
    assert shipper.total.unstorable == len(bad)
    kept = quarantined(tmp_path)
    assert len(kept) == len(bad)
    assert all(item["reason"] and item["request"] for item in kept)


def vars_of(one) -> dict:
    return {k: v if not isinstance(v, int) or abs(v) < 2**63 else float(v)
            for k, v in one.as_dict().items()}  # fmt: skip


def test_damage_is_set_aside_and_a_torn_tail_counted(tmp_path: Path) -> None:
    good, torn = record(), record()
    damaged = bytearray(final(record()))
    damaged[len(damaged) // 2] ^= 0xFF
    spool = tmp_path / "spool"
    write_segment(spool, bytes(damaged), final(good), intent(torn), final(torn)[:-1])
    shipper = shipper_of(tmp_path)
    assert shipper.ship() == 2
    total = shipper.total
    assert (total.damaged, total.torn, total.interrupted) == (1, 1, 1)
    assert {row["status"] for row in table_rows(tmp_path)} == {"ok", "interrupted"}
    reasons = [item["reason"] for item in quarantined(tmp_path)]
    assert reasons == ["damaged bytes", "unfinished last write"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(max_size=40),
    body=st.binary(max_size=60) | st.text(max_size=40).map(str.encode),
    tags=st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=2),
)
def test_any_content_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, body: bytes, tags: dict[str, str]
) -> None:
    home = tmp_path_factory.mktemp("any")
    escaped = orjson.dumps({"text": text + "\x00"})
    write_segment(home / "spool", final(record(user=text, tags=tags), body, escaped))
    assert shipper_of(home).ship() == 1
    (row,) = table_rows(home)
    assert row["user"] == text
    assert orjson.loads(row["response"]) == {"text": text + "\x00"}
    assert orjson.loads(row["tags"] or "{}") == tags
    if row["request_encoding"] == "base64":
        import base64

        assert base64.b64decode(row["request"]) == body
    else:
        assert (row["request"] or "").encode() == body


def test_one_shipper_a_spool(tmp_path: Path) -> None:
    taken = pytest.raises(SpoolTaken, match=f"process {os.getpid()}")
    with spool_lock(tmp_path), taken, spool_lock(tmp_path):
        pass
    with spool_lock(tmp_path):
        pass


def test_a_table_that_cannot_be_written_keeps_the_spool(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", final(record()))
    (tmp_path / "log").write_text("in the way")
    shipper = shipper_of(tmp_path)
    with pytest.raises(OSError):
        shipper.ship()
    assert len(segment_paths(tmp_path / "spool")) == 1
    (tmp_path / "log").unlink()
    assert shipper_of(tmp_path).ship() == 1


def test_the_process_ships_beats_and_stops(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(
        "upstreams: {}\nmodels: {}\nlog: {commit_seconds: 0.1}\n"
    )
    env = {
        **os.environ,
        "LLMOPS_HOME": str(tmp_path),
        "LLMOPS_CONFIG": str(tmp_path / "gateway.yaml"),
    }
    command = [sys.executable, "-m", "gateway.shipper"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE)
    try:
        write_segment(tmp_path / "spool", final(record()))
        deadline = time.monotonic() + 20
        alive = tmp_path / "run" / "shipper.alive"
        while segment_paths(tmp_path / "spool") or not alive.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=30)
        assert second.returncode == 1
        assert f"process {process.pid}" in second.stderr.decode()
        write_segment(tmp_path / "spool", final(record()))
    finally:
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        process.stderr.close()
    assert len(table_rows(tmp_path)) == 2
