"""`python -m tests.bench.flights`: all flights of 2013 to training rows, in time and memory.

In a process of its own: the package's files to events and feature tables, then every event with its
features as they were known (Feast on DuckDB), to Parquet. Beside it: the newest features put into
Redis, and single reads of them as the model server makes them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.bench.children import ROOT
from tests.embedding_stack import RedisProcess

MOST_MB = 4096.0
READS = 500
SERVICE = "arrival_delay"


def training(folder: Path, until: datetime) -> dict[str, Any]:
    """Tables and training rows until a moment: rows, and seconds of each step."""
    import pandas as pd

    from pipelines import flights
    from pipelines.features import open_features, training_rows

    clock = [time.monotonic()]
    flights.write(folder, until=until)
    clock.append(time.monotonic())
    events = pd.read_parquet(folder / flights.EVENTS)
    with open_features(folder) as store:
        rows = training_rows(store, SERVICE, events)
    rows.to_parquet(folder / "rows.parquet")
    clock.append(time.monotonic())
    return {"rows": len(rows), "tables": clock[1] - clock[0], "features": clock[2] - clock[1]}


def serving(folder: Path) -> dict[str, Any]:
    """Seconds of putting features into Redis, and milliseconds of single reads."""
    import pandas as pd

    from gateway.feature_reads import OnlineFeatures
    from gateway.feature_store import open_feature_store
    from pipelines.features import materialise, open_features

    moment = pd.Timestamp("2013-06-10T15:00Z")
    events = pd.read_parquet(folder / "flights.parquet")
    due = events[events["scheduled_departure"].between(moment, moment + timedelta(hours=1))]
    with RedisProcess(folder) as redis, open_features(folder, redis.url) as store:
        started = time.monotonic()
        materialise(store, moment.to_pydatetime())
        seconds = time.monotonic() - started
        home = open_feature_store(folder / "home", redis.url, key_ttl_seconds=600)
        online = OnlineFeatures(home, SERVICE)
        asked = due[list(online.schema.asked)].to_dict("records")
        took = {}
        for size in (1, 16):
            taken = []
            for place in range(READS):
                rows = [asked[(place + other) % len(asked)] for other in range(size)]
                began = time.perf_counter()
                online.read(online.schema.parse(rows))
                taken.append((time.perf_counter() - began) * 1000)
            took[size] = sorted(taken)
    return {
        "materialise": seconds,
        "read": {size: (one[READS // 2], one[READS * 95 // 100]) for size, one in took.items()},
    }


def measured(part: str, folder: Path, until: datetime) -> dict[str, Any]:
    """What a part says, run as a process of its own, with its peak of resident memory (MB)."""
    out = folder / f"{part}.json"
    command = [sys.executable, "-m", "tests.bench.flights", "--part", part, "--folder", str(folder),
               "--until", until.date().isoformat()]  # fmt: skip
    with out.open("w") as sink:
        child = subprocess.Popen(command, cwd=ROOT, stdout=sink)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{part} ended with {os.waitstatus_to_exitcode(status)}")
    found: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])
    return found | {"mb": used.ru_maxrss / 1024}


def main() -> int:
    """Measure and print; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flights", description=__doc__)
    parser.add_argument("--until", default="2014-01-02", help="flights before that day")
    parser.add_argument("--part", choices=["training", "serving"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    until = datetime.fromisoformat(given.until).replace(tzinfo=UTC)
    if given.part:
        parts = {"training": lambda: training(given.folder, until),
                 "serving": lambda: serving(given.folder)}  # fmt: skip
        print(json.dumps(parts[given.part]()))
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        trained = measured("training", Path(name), until)
        met = trained["mb"] <= MOST_MB
        print(
            f"{trained['rows']:,} flights: tables {trained['tables']:.1f} s, training rows "
            f"{trained['features']:.1f} s; {trained['mb']:,.0f} MB at most (goal: {MOST_MB:g} MB): "
            f"{'met' if met else 'MISSED'}"
        )
        if until >= datetime(2013, 7, 1, tzinfo=UTC):
            served = measured("serving", Path(name), until)
            print(f"newest features into Redis: {served['materialise']:.1f} s")
            for size, (half, most) in served["read"].items():
                print(f"a read of {size}: p50 {half:.2f} ms, p95 {most:.2f} ms")
    print(f"{os.cpu_count()} processors, load {load:.1f} at the start")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
