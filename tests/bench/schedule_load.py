"""`python -m tests.bench.schedule_load`: what the schedule costs the gateway beside it.

One worker answers a bounded load (a fixed rate over loopback) in three states that take turns:
without a schedule, beside one that waits, and beside one whose job compares the gateway's own
traffic with a reference again and again. The median of the rounds' p99 counts; how much p99 varies
between rounds of the first state is the noise.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml

from deploy.scheduled_runs import REFUSED, ScheduledRuns
from evals.reference import pin
from evals.windows import Period, Traffic, read_window
from gateway.database import open_database
from gateway.request_log import LogReader
from gateway.settings import Settings
from tests.bench.children import Child, free_port
from tests.bench.gateway_home import UNARY_MODEL, configuration, make_home, start_process
from tests.bench.progress import Progress
from tests.bench.unary import request_body
from tests.bench.upstreams import running_upstreams, work_folder

MOST_SLOWER = 1.10
WITHOUT, WAITING, BUSY = "no schedule", "a schedule that waits", "a schedule with a job"
STATES = (WITHOUT, WAITING, BUSY)
WARM_UP_REQUESTS = 2_000
JOB = {"drift": {"every": "1s", "command": ["drift", "check", f"model:{UNARY_MODEL}"]}}


@dataclass
class Load:
    """Milliseconds of every request, by state and round."""

    rounds: dict[str, list[list[float]]] = field(
        default_factory=lambda: {state: [] for state in STATES}
    )
    looks: int = 0

    def p99(self, state: str) -> float:
        """Median over the rounds."""
        return median(quantile(one, 0.99) for one in self.rounds[state])

    def p50(self, state: str) -> float:
        """Median over the rounds."""
        return median(quantile(one, 0.5) for one in self.rounds[state])

    def lines(self) -> list[str]:
        """A table, and what it rests on."""
        base = self.p99(WITHOUT)
        spread = [quantile(one, 0.99) for one in self.rounds[WITHOUT]]
        rows = ["| | p50, ms | p99, ms | p99 ratio |", "| --- | ---: | ---: | ---: |"]
        rows += [
            f"| {state} | {self.p50(state):.2f} | {self.p99(state):.2f} | "
            f"{self.p99(state) / base:.2f} |"
            for state in STATES
        ]
        return [
            *rows,
            f"p99 without a schedule, round by round: {min(spread):.2f} to {max(spread):.2f} ms; "
            f"{self.looks} runs of the job begun; goal: a ratio of at most {MOST_SLOWER:g}",
        ]

    def met(self) -> bool:
        """Whether the goal is met in both states."""
        return all(self.p99(one) <= MOST_SLOWER * self.p99(WITHOUT) for one in (WAITING, BUSY))


def quantile(values: list[float], share: float) -> float:
    """The value that this share of the values is not above."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def ask(url: str, key: str, rate: float, count: int) -> list[float]:
    """So many requests, so many a second, whatever the answers take; milliseconds of each."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    body = request_body(UNARY_MODEL)
    connector = aiohttp.TCPConnector(limit=32)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

        async def one(place: int) -> float:
            await asyncio.sleep(max(began + place / rate - time.monotonic(), 0))
            sent = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", data=body) as answer:
                await answer.read()
                answer.raise_for_status()
            return (time.perf_counter() - sent) * 1000

        began = time.monotonic()
        return list(await asyncio.gather(*(one(place) for place in range(count))))


@contextmanager
def schedule(folder: Path, settings: Settings, state: str) -> Iterator[None]:
    """The schedule in this state, for as long as the block lasts."""
    if state == WITHOUT:
        yield
        return
    given: dict[str, Any] = yaml.safe_load(settings.config_path.read_text())
    given["schedule"] = {"jobs": JOB if state == BUSY else {}}
    given["drift"] = {"least_rows": 500}
    fresh = settings.config_path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(given))
    fresh.replace(settings.config_path)
    alive = settings.home / "run" / "schedule.alive"
    alive.unlink(missing_ok=True)
    child = start_process("deploy.schedule", folder, settings)
    try:
        while not alive.exists():
            time.sleep(0.1)
        time.sleep(1.5)  # its first job has begun
        yield
    finally:
        child.stop()


def pin_traffic(settings: Settings) -> None:
    """What was asked so far is the reference."""
    reader = LogReader(settings.spool_dir, str(settings.home / "log" / "requests"))
    traffic = Traffic(model=UNARY_MODEL)
    period = Period(0, int(datetime.now(UTC).timestamp() * 1e6), 50_000)
    pin(settings.home, traffic, read_window(reader, traffic, period), "bench")


def looks_begun(settings: Settings) -> int:
    """Runs of the job that were begun; on a busy machine few of them end within a round."""
    database = open_database(settings.database_url)
    rows = ScheduledRuns(database, settings.home / "run").latest(1000, "drift")
    database.close()
    return sum(row.state != REFUSED for row in rows)


def measure(
    gateway: tuple[str, str], folder: Path, settings: Settings, arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> Load:  # fmt: skip
    """Rounds of all states in turn."""
    load, (url, key) = Load(), gateway
    count = int(arguments.rate * arguments.seconds)
    for number in range(arguments.rounds):
        for state in STATES[number % 3 :] + STATES[: number % 3]:
            say(f"round {number + 1} of {arguments.rounds}: {state}")
            with schedule(folder, settings, state):
                load.rounds[state].append(asyncio.run(ask(url, key, arguments.rate, count)))
    load.looks = looks_begun(settings)
    return load


def main() -> int:
    """Measure and print; 1 if the goal was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.schedule_load", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    arguments = parser.parse_args()
    say = Progress(sys.stderr)
    with work_folder() as folder, running_upstreams(folder) as upstreams:
        port = free_port()
        given = configuration(upstreams, port=port, admin_port=free_port())
        settings, key = make_home(folder / "gateway", given)
        worker: Child = start_process("gateway.worker", folder, settings)
        url = f"http://127.0.0.1:{port}"
        try:
            worker.wait_until_answers(f"{url}/health/ready", seconds=60, headers={})
            say("warming up")
            asyncio.run(ask(url, key, arguments.rate * 2, WARM_UP_REQUESTS))
            pin_traffic(settings)
            load = measure((url, key), folder, settings, arguments, say)
        finally:
            worker.stop()
    print("", *load.lines(), f"load at the end: {os.getloadavg()[0]:.1f}", sep="\n")
    return 0 if load.met() else 1


if __name__ == "__main__":
    sys.exit(main())
