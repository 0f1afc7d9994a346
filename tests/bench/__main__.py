"""`python -m tests.bench`: direct, nginx, this gateway, vllm-router and LiteLLM in one run."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from tests.bench.contenders import DIRECT, EVERY, LITELLM, ROUTER, running
from tests.bench.nginx import MissingTool
from tests.bench.peers import Peers, installed_peers
from tests.bench.progress import Progress
from tests.bench.report import Figures, ratio_table, ratios, table
from tests.bench.streams import measure_streams
from tests.bench.unary import measure_unary
from tests.bench.upstreams import running_upstreams, work_folder


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--only", default=",".join(EVERY), help="contenders, with commas between")
    parser.add_argument("--peers", type=Path, default=Path(".venv-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="length of one unary run")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, say: Progress) -> Figures:
    """Run everything; figures by contender."""
    names = tuple(name for name in EVERY if name in arguments.only.split(","))
    peers: Peers | None = None
    if {ROUTER, LITELLM} & set(names):
        peers = installed_peers(arguments.peers, say)
    with (
        work_folder() as folder,
        running_upstreams(folder) as upstreams,
        running(names, folder, upstreams, peers=peers, say=say) as contenders,
    ):
        figures = {one.name: {"start_mb": one.unary.resident_mb()} for one in contenders}
        unary = measure_unary(
            contenders, rounds=arguments.rounds, seconds=arguments.seconds, say=say
        )
        streams = measure_streams(contenders, rounds=arguments.stream_rounds, say=say)
        for one in contenders:
            end = {"end_mb": one.unary.resident_mb()}
            figures[one.name] |= unary[one.name] | streams[one.name] | end
    return figures


def main() -> int:
    """Measure, print the tables, write the file; 1 if a goal was missed."""
    arguments = read_arguments()
    say = Progress(sys.stderr)
    load, started = os.getloadavg()[0], time.monotonic()
    try:
        figures = measure(arguments, say)
    except MissingTool as error:
        print(error, file=sys.stderr)
        return 2
    goals = ratios(figures)
    noise = figures.get(DIRECT, {}).get("p50_spread", 0.0)
    machine = {
        "processors": os.cpu_count(),
        "load_at_start": load,
        "direct_p50_spread": noise,
        "seconds": time.monotonic() - started,
    }
    print(table(figures), ratio_table(goals), _noise(machine), sep="\n\n")
    if arguments.json:
        result: dict[str, Any] = {"figures": figures, "ratios": goals, "machine": machine}
        arguments.json.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return 0 if all(goal["met"] for goal in goals) else 1


def _noise(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processors']} processors, load {machine['load_at_start']:.1f} at the start; "
        f"the direct p50 varied by {machine['direct_p50_spread']:.0%} between rounds; "
        f"{machine['seconds']:.0f} s in all."
    )


if __name__ == "__main__":
    sys.exit(main())
