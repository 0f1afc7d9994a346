"""Unary load with wrk: latency at one connection; throughput and CPU at 32.

Every round visits every contender in turn, so that what the machine does meanwhile meets all of
them; what is added to the direct way is taken within the round; the median of the rounds counts.
"""

import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import orjson

from tests.bench.contenders import DIRECT, Contender, Target
from tests.bench.nginx import CONTENT, find_tool

SCRIPT = Path(__file__).with_name("unary.lua")
PROMPT = "Say something short, please, about the weather of tomorrow."


class LoadFailed(RuntimeError):
    """Requests failed under load: the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class WrkRun:
    """One run of wrk, and the CPU that its target took meanwhile."""

    p50_us: float
    p99_us: float
    requests_per_second: float
    cpu_us: float


def request_body(model: str) -> bytes:
    """A small chat completion request."""
    return orjson.dumps({"model": model, "messages": [{"role": "user", "content": PROMPT}]})


def ask_once(target: Target) -> None:
    """One request, which may be slow as it is the first; raises LoadFailed on a wrong answer."""
    headers = {"content-type": "application/json", **target.headers}
    request = urllib.request.Request(target.chat_url, request_body(target.model), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = orjson.loads(answer.read())
    if found["choices"][0]["message"]["content"] != CONTENT:
        raise LoadFailed(f"{target.url} answered {found}")


def run_wrk(target: Target, *, connections: int, seconds: float) -> WrkRun:
    """Load `target`; raises LoadFailed where not every answer was 2xx."""
    headers = [f"{name}: {value}" for name, value in target.headers.items()]
    command = [
        find_tool("wrk"),
        *("-t1", f"-c{connections}", f"-d{round(seconds)}", "--timeout", "10", "-s", str(SCRIPT)),
        target.chat_url,
        *("--", request_body(target.model).decode(), *headers),
    ]
    before = target.cpu_seconds()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = target.cpu_seconds() - before
    line = next(line for line in output.splitlines() if line.startswith("FIGURES "))
    figures = orjson.loads(line.removeprefix("FIGURES "))
    if figures["failed"] or not figures["requests"]:
        raise LoadFailed(f"{target.url}: {figures['failed']} requests failed\n{output}")
    return WrkRun(
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        requests_per_second=figures["requests"] / figures["seconds"],
        cpu_us=used / figures["requests"] * 1e6,
    )


def measure_unary(
    contenders: list[Contender], *, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Figures of each contender, by name."""
    for contender in contenders:
        say(f"warming up {contender.name}")
        ask_once(contender.unary)
        run_wrk(contender.unary, connections=8, seconds=2)
    single = _rounds(contenders, 1, rounds=rounds, seconds=seconds, say=say)
    busy = _rounds(contenders, 32, rounds=rounds, seconds=seconds, say=say)
    return {
        one.name: _figures(single[one.name], busy[one.name], single.get(DIRECT, []))
        for one in contenders
    }


def _rounds(
    contenders: list[Contender],
    connections: int,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, list[WrkRun]]:
    runs: dict[str, list[WrkRun]] = {contender.name: [] for contender in contenders}
    for number in range(1, rounds + 1):
        for contender in contenders:
            say(f"unary, {connections} at once, round {number}/{rounds}: {contender.name}")
            run = run_wrk(contender.unary, connections=connections, seconds=seconds)
            runs[contender.name].append(run)
    return runs


def _figures(single: list[WrkRun], busy: list[WrkRun], direct: list[WrkRun]) -> dict[str, float]:
    p50s = [run.p50_us for run in single]
    figures = {
        "p50_us": median(p50s),
        "p99_us": median(run.p99_us for run in single),
        "p50_spread": (max(p50s) - min(p50s)) / median(p50s),
        "requests_per_second": median(run.requests_per_second for run in busy),
        "cpu_us_per_request": median(run.cpu_us for run in busy),
    }
    if direct:
        pairs = list(zip(single, direct, strict=True))
        figures["added_p50_us"] = median(one.p50_us - base.p50_us for one, base in pairs)
        figures["added_p99_us"] = median(one.p99_us - base.p99_us for one, base in pairs)
    return figures
