"""What a prediction takes: gateway → KServe model server → Feast on Redis → model, all real.

First one caller, one request after the other, then so many requests a second for a minute, sent
when they are due whether or not earlier ones are answered. The model is a calibrated gradient
boosting of 150 trees; every request is for one flight whose features are read.

python -m tests.bench.predictions
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import psutil

from tests.embedding_stack import RedisProcess
from tests.gateway_process import GatewayProcess, configuration, free_port
from tests.tabular_home import (
    ALIAS,
    FLIGHT,
    ModelServerProcess,
    fill_features,
    save_booster,
    save_version,
    served,
)

ESTIMATOR, BOOSTER = served("1a"), served("2b")
TREES = 150
MB = 1024 * 1024


@dataclass(frozen=True)
class Stand:
    """What runs: a worker, a model server, Redis."""

    gateway: GatewayProcess
    server: ModelServerProcess


@contextmanager
def running(folder: Path) -> Iterator[Stand]:
    """Start everything, with one alias for each of two versions."""
    port = free_port()
    with RedisProcess(folder) as redis:
        given = configuration(
            "http://127.0.0.1:9/v1",
            upstreams={"kserve": {"kind": "kserve", "url": f"http://127.0.0.1:{port}/v2"}},
            models={
                ALIAS: {"upstream": "kserve", "model": ESTIMATOR, "price": {"predictions": 1}},
                "boosted": {"upstream": "kserve", "model": BOOSTER, "price": {"predictions": 1}},
            },
            model_server={"port": port, "redis_url": redis.url},
        )
        gateway = GatewayProcess(folder / "home", given)
        save_version(gateway.settings.tabular_dir, ESTIMATOR, trees=TREES)
        save_booster(gateway.settings.tabular_dir, BOOSTER, trees=TREES)
        fill_features(gateway.home, redis.url)
        server = ModelServerProcess(gateway.environ, port)
        try:
            yield Stand(gateway.start(), server.start())
        finally:
            server.kill()
            gateway.stop()


class Caller:
    """Asks one address for one flight's prediction; keeps the milliseconds of each answer."""

    def __init__(self, session: aiohttp.ClientSession, url: str, body: bytes):
        self._session, self._url, self._body = session, url, body
        self.spent: list[float] = []
        self.failed = 0

    async def ask(self) -> None:
        """One request. One that fails is counted."""
        started = time.perf_counter()
        try:
            async with self._session.post(self._url, data=self._body) as answer:
                await answer.read()
        except aiohttp.ClientError:
            self.failed += 1
            return
        self.failed += answer.status != 200
        self.spent.append((time.perf_counter() - started) * 1000)


def line(name: str, spent: Sequence[float], end: str = "") -> str:
    """A row of the table."""
    ordered = sorted(spent)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"{name:<46} {statistics.median(spent):8.2f} {p99:8.2f} {ordered[-1]:8.1f}  {end}"


async def one_by_one(caller: Caller, name: str, calls: int) -> None:
    """`calls` requests, each after the last one's answer."""
    for _ in range(calls // 10):
        await caller.ask()
    caller.spent.clear()
    for _ in range(calls):
        await caller.ask()
    print(line(name, caller.spent, f"{caller.failed} failed"), flush=True)


async def at_a_rate(caller: Caller, rate: float, seconds: float) -> None:
    """`rate` requests a second for `seconds`, each when it is due."""
    caller.spent.clear()
    began, asked = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(began + number / rate - time.perf_counter())
        asked.append(asyncio.create_task(caller.ask()))
    await asyncio.gather(*asked)
    took = time.perf_counter() - began
    told = f"{len(caller.spent) / took:.1f}/s for {took:.1f} s, {caller.failed} failed"
    print(line(f"{rate:g} a second, {ALIAS}", caller.spent, told), flush=True)


async def measure(stand: Stand, calls: int, rate: float, seconds: float) -> None:
    """Print the table."""
    headers = {"authorization": f"Bearer {stand.gateway.key}", "content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        for version in (ESTIMATOR, BOOSTER):
            load = f"{stand.server.url}/repository/models/{version}/load"
            async with session.post(load) as answer:
                answer.raise_for_status()
        flight = orjson.dumps({"instances": [FLIGHT]})
        url = f"{stand.gateway.url}/v1/predict"
        async with session.post(f"{url}/{ALIAS}", data=flight) as answer:
            features = orjson.dumps({"instances": (await answer.json())["features"]})
        print(f"{'':<46} {'p50 ms':>8} {'p99 ms':>8} {'max':>8}")
        through = Caller(session, f"{url}/{ALIAS}", flight)
        await one_by_one(through, "scikit-learn, 150 trees, calibrated", calls)
        boosted = Caller(session, f"{url}/boosted", flight)
        await one_by_one(boosted, "XGBoost, 150 trees", calls)
        given = Caller(session, f"{url}/{ALIAS}", features)
        await one_by_one(given, "scikit-learn, every feature given: no Feast", calls)
        await at_a_rate(through, rate, seconds)
    memory = psutil.Process(stand.server.pid).memory_info().rss / MB
    print(f"the model server holds {memory:.0f} MB")


def main() -> None:
    """Start the processes, measure, stop them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=150)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as stand:
        load = psutil.getloadavg()[0]
        print(f"load of the machine before: {load:.2f}")
        asyncio.run(measure(stand, arguments.calls, arguments.rate, arguments.seconds))


if __name__ == "__main__":
    main()
