"""Paced streams: added time to first event, lag of each event, CPU of each relayed event."""

import asyncio
from collections.abc import Callable
from statistics import median, quantiles

from tests.bench.contenders import DIRECT, Contender, Target
from tests.bench.stream_client import StreamLoad, run_streams, stream_request
from tests.bench.unary import LoadFailed
from tests.bench.upstreams import EVENTS

STREAMS = 64
STAGGER_SECONDS = 0.02
MS = 1e6


def measure_streams(
    contenders: list[Contender], *, rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Figures of each contender, by name."""
    runs: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for number in range(1, rounds + 1):
        for contender in contenders:
            say(f"{STREAMS} streams, round {number}/{rounds}: {contender.name}")
            runs[contender.name].append(_figures(load_streams(contender.stream, STREAMS)))
    direct = runs.get(DIRECT, [])
    return {name: _summary(found, direct) for name, found in runs.items()}


def load_streams(target: Target, streams: int) -> StreamLoad:
    """One load of paced streams; raises LoadFailed where a stream or an event was lost."""
    request = stream_request(target.chat_url, target.model, target.headers)
    load = asyncio.run(
        run_streams(
            request,
            streams=streams,
            stagger_seconds=STAGGER_SECONDS,
            cpu_seconds=target.cpu_seconds,
        )
    )
    if load.whole != streams or len(load.lags) != streams * EVENTS:
        raise LoadFailed(
            f"{target.url}: {load.whole} of {streams} streams came whole, "
            f"{len(load.lags)} of {streams * EVENTS} events"
        )
    return load


def _figures(load: StreamLoad) -> dict[str, float]:
    figures = {
        "first_ms": median(load.first) / MS,
        "lag_p50_ms": median(load.lags) / MS,
        "lag_p99_ms": quantiles(load.lags, n=100)[98] / MS,
    }
    if load.window_events:
        figures["cpu_us_per_event"] = load.window_cpu / load.window_events * 1e6
    return figures


def _summary(runs: list[dict[str, float]], direct: list[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(run) for run in runs))
    summary = {name: median(run[name] for run in runs) for name in names}
    for name in ("first_ms", "lag_p50_ms", "lag_p99_ms") if direct else ():
        pairs = zip(runs, direct, strict=True)
        summary[f"added_{name}"] = median(run[name] - base[name] for run, base in pairs)
    return summary
