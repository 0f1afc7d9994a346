"""`python -m tests.bench.drift_window`: one look at a window of 50,000 requests of 300 words.

Questions and answers have 300 words each; the reference is as large as the window. The log is
shipped into its table, the look is `llmops drift check` as a process of its own. Embeddings come
from a server that answers at once, as from a cache: what is measured is everything else.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import uuid_utils
import yaml

from deploy.migrations import upgrade
from evals.verdicts import verdicts_on
from gateway.database import open_database
from tests.bench.children import ROOT
from tests.bench.progress import Progress
from tests.evals.drift_log import COOKING, ENGLISH
from tests.evals.word_vectors import KEY, word_vectors
from tests.spooled_requests import final, record, shipper_of, write_segment

MOST_SECONDS, MOST_MB = 120.0, 2048.0
WORDS = 300
PIECES, PIECE_WORDS = 4_000, 30
SEGMENT_ROWS = 5_000
SUBJECT = "drift:model:small"


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look took, and the sizes that it reports."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    embedded: int
    reason: str

    def met(self) -> bool:
        """Whether both goals are met."""
        return self.seconds <= MOST_SECONDS and self.peak_mb <= MOST_MB

    def lines(self) -> list[str]:
        """One line a figure."""
        return [
            f"a look at {self.rows:,} requests beside as many: {self.seconds:.0f} s, "
            f"{self.cpu_seconds:.0f} CPU s (goal: {MOST_SECONDS:g} s); {self.peak_mb:,.0f} MB at "
            f"most (goal: {MOST_MB:g} MB); {'met' if self.met() else 'MISSED'}",
            f"texts asked of the embedding server: {self.embedded:,}",
            self.reason,
        ]


def fill(home: Path, rows: int, say: Callable[[str], None]) -> None:
    """Twice so many requests, up to now, in the log's table."""
    draw = random.Random(7)
    words = f"{ENGLISH} {COOKING}".split() + [f"word{number}" for number in range(3_000)]
    pieces = [" ".join(draw.choices(words, k=PIECE_WORDS)) for _ in range(PIECES)]
    began = datetime.now(UTC) - timedelta(hours=10)
    step = timedelta(hours=9) / (2 * rows)

    def text() -> str:
        return " ".join(draw.choices(pieces, k=WORDS // PIECE_WORDS))

    shipper = shipper_of(home)
    for first in range(0, 2 * rows, SEGMENT_ROWS):
        records = []
        for number in range(first, min(first + SEGMENT_ROWS, 2 * rows)):
            stamp = (began + step * number).timestamp()
            given = record(
                request_id=str(uuid_utils.uuid7(timestamp=int(stamp), nanos=number * 1000 % 10**9)),
                ts=int(stamp * 1e6),
                user=f"user-{number}",
                input_tokens=400,
                output_tokens=390 + draw.randrange(20),
            )
            asked = {"messages": [{"role": "user", "content": text()}]}
            told = {"choices": [{"message": {"role": "assistant", "content": text()}}]}
            records.append(final(given, orjson.dumps(asked), orjson.dumps(told)))
        write_segment(home / "spool", *records)
        shipper.ship()
        say(f"{first + SEGMENT_ROWS:,} requests in the log")


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and the peak of resident memory (MB) of a command that must not fail."""
    started = time.monotonic()
    pid = os.spawnvpe(os.P_NOWAIT, command[0], command, environment)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 100):
        raise RuntimeError(f"{' '.join(command)}: exit code {code}")
    spent = used.ru_utime + used.ru_stime
    return time.monotonic() - started, spent, used.ru_maxrss / 1024


def measure(folder: Path, rows: int, say: Callable[[str], None]) -> Looked:
    """Fill a log, pin its first half, look at the second."""
    home = folder / "home"
    home.mkdir()
    database_url = f"sqlite:///{home / 'state.db'}"
    upgrade(database_url)
    fill(home, rows, say)
    with word_vectors() as server:
        given = {
            "server": {"host": "127.0.0.1", "port": server.server_port},
            "upstreams": {"up": {"url": "http://127.0.0.1:9/v1"}},
            "models": {"*": {"upstream": "up"}},
            "drift": {"vector_model": "vectors", "api_key_env": "DRIFT_KEY", "most_rows": rows},
        }
        (home / "gateway.yaml").write_text(yaml.safe_dump(given))
        environment = {**os.environ, "LLMOPS_HOME": str(home), "LLMOPS_CONFIG": "",
                       "DRIFT_KEY": KEY, "PYTHONPATH": str(ROOT)}  # fmt: skip
        command = [sys.executable, "-P", "-m", "deploy.cli", "drift"]
        say("pinning")
        # The newest rows of the older half: the window begins after them.
        pin_reference(home, rows)
        say("looking")
        seconds, spent, peak = run([*command, "check", "model:small"], environment)
        embedded = server.texts
    database = open_database(database_url)
    with database.session() as session:
        verdict = verdicts_on(session, SUBJECT)[-1]
    database.close()
    if not verdict.metrics or verdict.evidence["window_rows"] != rows:
        raise RuntimeError(f"it did not look at {rows} rows: {verdict.reasons}")
    return Looked(rows, seconds, spent, peak, embedded, verdict.reasons[0])


def pin_reference(home: Path, rows: int) -> None:
    """The older half of the log."""
    from evals.reference import pin
    from evals.windows import Period, Traffic, read_window
    from gateway.request_log import LogReader

    reader = LogReader(home / "spool", str(home / "log" / "requests"))
    traffic = Traffic(model="small")
    middle = reader.select(
        "SELECT epoch_us(ts) FROM requests ORDER BY ts LIMIT 1 OFFSET ?", [rows - 1]
    ).rows[0][0]
    pin(home, traffic, read_window(reader, traffic, Period(0, int(middle), rows)), "bench")


def main() -> int:
    """Measure and print; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drift_window", description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    with tempfile.TemporaryDirectory() as folder:
        looked = measure(Path(folder), parser.parse_args().rows, Progress(sys.stderr))
    print("", *looked.lines(), sep="\n")
    return 0 if looked.met() else 1


if __name__ == "__main__":
    sys.exit(main())
