"""`python -m tests.bench.drift`: run the detection study, go on where it stopped, write the report.

Every trial is a line of `results.jsonl`, written when it ends; a trial that is there is not run
again. A second process may work beside it from the other end (`--backwards`). The report can be
written at any time from what is there.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from deploy.migrations import upgrade
from gateway.database import Database, open_database
from tests.bench.drift.pool import read_pool
from tests.bench.drift.report import write_report
from tests.bench.drift.sources import NoTexts
from tests.bench.drift.traffic import CHANGES, MIXES, STEADY, Change
from tests.bench.drift.trials import Study, Terms, kinds
from tests.bench.progress import Progress


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drift", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".llmops/drift-study"))
    parser.add_argument("--months", type=int, default=1000)
    parser.add_argument("--power", type=int, default=150, help="first windows of each change")
    parser.add_argument("--times", type=int, default=80, help="detections of each change")
    parser.add_argument("--backwards", action="store_true", help="the last trials first")
    parser.add_argument("--report", type=Path, help="write it to this file")
    parser.add_argument("--report-only", action="store_true", help="of what is there already")
    return parser.parse_args()


def trials(arguments: argparse.Namespace) -> Iterator[tuple[str, Change, int]]:
    """All that are wanted: few of each first, so that a part of the results says something."""
    for seed in range(max(arguments.power, arguments.times)):
        if seed < arguments.power:
            yield from (("power", change, seed) for change in MIXES)
        if seed < arguments.times:
            yield from (("time", change, seed) for change in CHANGES)
    yield from (("month", STEADY, seed) for seed in range(arguments.months))


def run(arguments: argparse.Namespace, say: Progress) -> None:
    """Run what is missing."""
    results = arguments.folder / "results.jsonl"
    pool = read_pool(arguments.folder / "pool", say)
    wanted = list(trials(arguments))[:: -1 if arguments.backwards else 1]
    with fresh_database() as database, results.open("ab") as file:
        run_one = kinds(Study(pool, database, Terms()))
        for place, (kind, change, seed) in enumerate(wanted):
            if (kind, change.name, seed) in keys(results):
                continue
            started = time.process_time()
            result = run_one[kind](seed, change)
            spent = time.process_time() - started
            line = {"kind": kind, "change": change.name, "seed": seed, "cpu": spent, **result}
            file.write(orjson.dumps(line) + b"\n")
            file.flush()
            say(f"{place + 1} of {len(wanted)}: {kind} {change.name} {seed}: {spent:.2f} s")


def keys(results: Path) -> set[tuple[str, str, int]]:
    """Trials that ended."""
    return {(one["kind"], one["change"], one["seed"]) for one in read_results(results)}


@contextmanager
def fresh_database() -> Iterator[Database]:
    """A state database with nothing in it, so that no budget is used yet."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/state.db"
        upgrade(url)
        database = open_database(url)
        try:
            yield database
        finally:
            database.close()


def read_results(path: Path) -> list[dict[str, Any]]:
    """Every trial that ended, once; a line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    found = [orjson.loads(line) for line in lines if line.endswith(b"}")]
    once = {(one["kind"], one.get("change"), one["seed"]): one for one in found}
    return list(once.values())


def main() -> int:
    """Run, and write the report."""
    arguments = read_arguments()
    try:
        if not arguments.report_only:
            run(arguments, Progress(sys.stderr))
    except NoTexts as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.report:
        told = orjson.loads((arguments.folder / "pool" / "told.json").read_bytes())
        write_report(arguments.report, told, read_results(arguments.folder / "results.jsonl"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
