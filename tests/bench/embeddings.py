"""Latency of embeddings over loopback, with a real Redis, Feast and MiniLM.

First at the embedding server, then through one worker of the gateway: key checked, log on.

python -m tests.bench.embeddings
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import orjson

from tests.embedding_stack import EmbeddingServerProcess, RedisProcess
from tests.gateway_process import GatewayProcess, configuration

MODEL = "all-MiniLM-L6-v2"
SENTENCE = "The quick brown fox number {} jumps over the lazy dog while it rains in the harbour."


class Client:
    """One keep-alive connection."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, f"{url}/v1/embeddings"

    async def ask(self, texts: list[str], encoding: str = "float") -> str:
        """Embed the texts; returns `x-cache`."""
        body = {"model": MODEL, "input": texts, "encoding_format": encoding}
        async with self._session.post(self._url, data=orjson.dumps(body)) as answer:
            await answer.read()
            answer.raise_for_status()
            return str(answer.headers["x-cache"])


async def timed(call: Callable[[int], Awaitable[str]], count: int, expected: str) -> list[float]:
    """Milliseconds of `count` calls, one after the other, each with the expected `x-cache`."""
    spent = []
    for index in range(count):
        started = time.perf_counter()
        cache = await call(index)
        spent.append((time.perf_counter() - started) * 1000)
        if cache != expected:
            raise RuntimeError(f"x-cache is {cache}, not {expected}")
    return spent


def line(name: str, spent: list[float]) -> str:
    """A row of the table."""
    ordered = sorted(spent)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"{name:<42} {statistics.median(spent):9.2f} {p99:9.2f}"


async def measure(url: str, calls: int, key: str = "") -> None:
    """Print the table of one server."""
    connector = aiohttp.TCPConnector(limit=64)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        client = Client(session, url)
        texts = [SENTENCE.format(index) for index in range(256)]
        await client.ask(texts)
        await asyncio.sleep(1)
        few = max(calls // 10, 20)
        print(f"{'':<42} {'p50 ms':>9} {'p99 ms':>9}")
        hit = await timed(lambda _: client.ask(texts[:1]), calls, "hit")
        print(line("hit, one text", hit))
        hit = await timed(lambda _: client.ask(texts[:1], "base64"), calls, "hit")
        print(line("hit, one text, base64", hit))
        print(line("hit, 256 texts", await timed(lambda _: client.ask(texts), few, "hit")))
        hit = await timed(lambda _: client.ask(texts, "base64"), few, "hit")
        print(line("hit, 256 texts, base64", hit))
        if key:
            return
        run = time.time_ns()
        miss = await timed(lambda i: client.ask([SENTENCE.format(f"{run} {i}")]), few, "miss")
        print(line("miss, one text", miss))
        await throughput(client, texts, calls)
        await beside_computing(client, texts, calls)


async def throughput(client: Client, texts: list[str], calls: int) -> None:
    """Hits of 32 callers at a time."""

    async def caller(number: int) -> None:
        for index in range(calls // 8):
            await client.ask([texts[(number * 7 + index) % len(texts)]])

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(32)))
    rate = 32 * (calls // 8) / (time.perf_counter() - started)
    print(f"{'hits a second, 32 callers, one text each':<42} {rate:9.0f}")


async def beside_computing(client: Client, texts: list[str], calls: int) -> None:
    """Hits while the model computes 400 other texts."""
    others = [SENTENCE.format(f"{time.time_ns()} {index}") for index in range(400)]
    computing = asyncio.create_task(client.ask(others))
    await asyncio.sleep(0.05)
    spent: list[float] = []
    while not computing.done() and len(spent) < calls:
        spent += await timed(lambda _: client.ask(texts[:1]), 1, "hit")
    await computing
    print(line("hit, one text, while the model computes", spent))


def through_gateway(folder: Path, url: str, calls: int) -> None:
    """The same hits through one worker."""
    upstreams = {"up": {"url": f"{url}/v1", "tell_tenant": True}}
    given = configuration(f"{url}/v1", upstreams=upstreams)
    gateway = GatewayProcess(folder / "gateway", given).start()
    try:
        print("\nthrough the gateway")
        asyncio.run(measure(gateway.url, calls, gateway.key))
    finally:
        gateway.stop()


def main() -> None:
    """Start Redis and the server, measure, stop them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--url", help="an embedding server that is running already")
    arguments = parser.parse_args()
    if arguments.url:
        asyncio.run(measure(arguments.url, arguments.calls))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            RedisProcess(folder) as redis,
            EmbeddingServerProcess(folder, {"redis_url": redis.url}) as server,
        ):
            print(f"the embedding server, ready after {server.ready_seconds:.1f} s")
            asyncio.run(measure(server.url, arguments.calls))
            through_gateway(folder, server.url, arguments.calls)


if __name__ == "__main__":
    main()
