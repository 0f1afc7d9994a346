"""`python -m tests.bench.log`: costs and look-ups over a log of 1,000,000 rows.

`llmops costs` takes at most 2 s; one id is found within 0.5 s by the running admin process and
within 1.5 s by the command line. Printed too: what shipping a row costs.
"""

import argparse
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gateway.settings import Settings
from tests.bench.children import ROOT, free_port
from tests.bench.gateway_home import configuration, make_home, start_process
from tests.bench.log_rows import Shipped, fill_log
from tests.bench.progress import Progress
from tests.bench.upstreams import Upstreams, work_folder

NOWHERE = Upstreams("http://127.0.0.1:9", "http://127.0.0.1:9", ())
COSTS_SECONDS, ADMIN_SECONDS, COMMAND_SECONDS = 2.0, 0.5, 1.5


@dataclass(frozen=True, slots=True)
class LogTimes:
    """Seconds: medians of several runs; `admin_first` is the admin process's first look-up."""

    shipped: Shipped
    costs: float
    admin_first: float
    admin: float
    command: float

    def lines(self) -> list[str]:
        """One line a figure."""
        per_row = self.shipped.cpu_seconds / self.shipped.rows * 1e6
        rows, per_second = self.shipped.rows, self.shipped.rows / self.shipped.seconds
        return [
            f"{rows:,} rows shipped: {per_second:,.0f} rows/s, {per_row:.0f} CPU µs/row",
            _line("llmops costs --by model --since 30d", self.costs, COSTS_SECONDS),
            _line("one id, admin process", self.admin, ADMIN_SECONDS),
            f"one id, admin process, first look-up of all: {self.admin_first:.2f} s",
            _line("one id, llmops logs show", self.command, COMMAND_SECONDS),
        ]

    def met(self) -> bool:
        """Whether every goal is met."""
        looked_up = self.admin <= ADMIN_SECONDS and self.command <= COMMAND_SECONDS
        return looked_up and self.costs <= COSTS_SECONDS


def measure(folder: Path, rows: int, say: Callable[[str], None]) -> LogTimes:
    """Fill a log and time its readers."""
    port = free_port()
    given = configuration(NOWHERE, port=free_port(), admin_port=port)
    settings, _ = make_home(folder / "gateway", given)
    shipped = fill_log(settings, rows, say)
    say("llmops costs")
    costs = [command_seconds(settings, "costs", "--by", "model", "--since", "30d") for _ in "123"]
    say("the admin process")
    looked_up = admin_seconds(folder, settings, port, shipped.ids)
    say("llmops logs show")
    shown = [command_seconds(settings, "logs", "show", one) for one in shipped.ids[:3]]
    return LogTimes(shipped, median(costs), looked_up[0], median(looked_up[1:]), median(shown))


def command_seconds(settings: Settings, *arguments: str) -> float:
    """Wall time of one `llmops` command, from its start to its end."""
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=dict(settings.environ), capture_output=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"llmops {' '.join(arguments)}: {done.stderr.decode()[-2000:]}")
    return seconds


def admin_seconds(folder: Path, settings: Settings, port: int, ids: list[str]) -> list[float]:
    """Time of each look-up in one admin process."""
    headers = {"authorization": f"Bearer {settings.admin_credential()}"}
    child = start_process("gateway.admin", folder, settings)
    times = []
    try:
        url = f"http://127.0.0.1:{port}"
        child.wait_until_answers(f"{url}/health/live", seconds=30, headers=headers)
        for one in ids:
            request = urllib.request.Request(f"{url}/logs/{one}", headers=headers)
            started = time.monotonic()
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
            times.append(time.monotonic() - started)
    finally:
        child.stop()
    return times


def _line(what: str, seconds: float, goal: float) -> str:
    verdict = "met" if seconds <= goal else "MISSED"
    return f"{what}: {seconds:.2f} s (goal: at most {goal} s) {verdict}"


def main() -> int:
    """Measure and print; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.log", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with work_folder() as folder:
        times = measure(folder, rows, Progress(sys.stderr))
    print("", *times.lines(), sep="\n")
    return 0 if times.met() else 1


if __name__ == "__main__":
    sys.exit(main())
