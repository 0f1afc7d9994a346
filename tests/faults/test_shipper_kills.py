"""The shipper killed at random instants beside a writer: nothing lost, nothing twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gateway.batches import segment_paths
from gateway.request_log import LogReader
from tests.spooled_requests import shipper_of

ROOT = Path(__file__).parent.parent.parent
REQUESTS = 24_000
KILLS = 12
WRITER_KILLED_AT = 7
SEED = int(os.environ.get("LLMOPS_TEST_SEED", "20261"))


def environment(home: Path) -> dict[str, str]:
    path = home / "gateway.yaml"
    path.write_text("upstreams: {}\nmodels: {}\nlog: {commit_seconds: 0.01}\n")
    return {**os.environ, "LLMOPS_HOME": str(home), "LLMOPS_CONFIG": str(path)}


def start_shipper(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.shipper"],
        cwd=ROOT,
        env=environment(home),
        stderr=subprocess.DEVNULL,
    )


def start_writer(home: Path, out: Path, count: int) -> subprocess.Popen[bytes]:
    arguments = [str(home / "spool"), str(count), str(SEED)]
    with out.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.log_writer", *arguments], cwd=ROOT, stdout=file
        )


def wait_for_commit(home: Path, seconds: float) -> None:
    """Until the killed shipper's successor is at work."""
    log = home / "log" / "requests" / "_delta_log"
    before = len(list(log.glob("*.json")))
    deadline = time.monotonic() + seconds
    while len(list(log.glob("*.json"))) == before and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.timeout(120)
def test_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    home = tmp_path
    acknowledged = home / "acknowledged"
    writers = [start_writer(home, acknowledged, REQUESTS)]
    shipper = start_shipper(home)
    try:
        for kill in range(KILLS):
            wait_for_commit(home, 3)
            time.sleep(rng.random() * 0.06)
            shipper.send_signal(signal.SIGKILL)
            shipper.wait()
            if kill == WRITER_KILLED_AT:
                assert writers[0].poll() is None
                writers[0].send_signal(signal.SIGKILL)
                left = REQUESTS - len(acknowledged.read_bytes().splitlines())
                writers.append(start_writer(home, acknowledged, left))
            shipper = start_shipper(home)
        for writer in writers:
            writer.wait(60)
    finally:
        for process in (shipper, *writers):
            process.kill()
            process.wait()
    shipper_of(home).ship()
    check(home, acknowledged)


def check(home: Path, acknowledged: Path) -> None:
    promised = {line for line in acknowledged.read_text().split("\n") if len(line) == 36}
    assert len(promised) >= 20_000
    reader = LogReader(home / "nothing", str(home / "log" / "requests"))
    rows = reader.rows(columns=["request_id", "status", "response"])
    counts = Counter(row["request_id"] for row in rows)
    assert [name for name, count in counts.items() if count > 1] == []
    assert promised - set(counts) == set()
    by_id = {row["request_id"]: row for row in rows}
    assert {by_id[name]["status"] for name in promised} == {"ok"}
    assert all(by_id[name]["response"] for name in promised)
    assert segment_paths(home / "spool") == []
    assert list((home / "spool" / "parts").iterdir()) == []
