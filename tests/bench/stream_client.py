"""A lean client that reads many paced streams and notes when each event came.

The upstream writes the moment of sending (monotonic nanoseconds, one clock for the whole machine)
into every event's content, so the client need only look for it.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import cast
from urllib.parse import urlsplit

import orjson

MOMENT = re.compile(rb'"content":\s?"(\d{9,}) ?"')
DONE = b"data: [DONE]"


@dataclass(slots=True)
class StreamLoad:
    """What came of one load. Times in nanoseconds.

    Attributes:
        first: request sent to first event, one a stream.
        lags: upstream's write to client's read, one an event.
        window_events, window_cpu: events read, and CPU seconds that the server took, while every
            stream was under way.
        whole: streams that ended as they should.
    """

    first: list[int] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    window_events: int = 0
    window_cpu: float = 0.0
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be sent."""

    host: str
    port: int
    head_and_body: bytes


def stream_request(url: str, model: str, headers: dict[str, str]) -> Request:
    """The request of every stream."""
    parts = urlsplit(url)
    asked = {"role": "user", "content": "Count, please."}
    body = orjson.dumps({"model": model, "stream": True, "messages": [asked]})
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"host: {parts.netloc}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return Request(parts.hostname or "127.0.0.1", parts.port or 80, head + body)


class _Window:
    """Watches how many streams are under way, and takes the CPU time when all are."""

    def __init__(self, load: StreamLoad, streams: int, cpu_seconds: Callable[[], float]) -> None:
        self.load = load
        self.waiting = streams
        self.cpu_seconds = cpu_seconds
        self.open = False
        self.started_cpu = cpu_seconds()

    def stream_started(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self.open = True
            self.load.window_events = 0
            self.started_cpu = self.cpu_seconds()

    def stream_ended(self) -> None:
        if self.open:
            self.open = False
            self.load.window_cpu = self.cpu_seconds() - self.started_cpu


class _Stream(asyncio.Protocol):
    """One stream."""

    def __init__(self, request: Request, load: StreamLoad, window: _Window) -> None:
        self.request = request
        self.load = load
        self.window = window
        self.rest = b""
        self.sent = 0
        self.seen = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.sent = monotonic_ns()
        self.transport.write(self.request.head_and_body)

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        data = self.rest + data
        if not self.seen and b"data:" in data:
            self.seen = True
            self.load.first.append(now - self.sent)
            self.window.stream_started()
        found = MOMENT.findall(data)
        self.load.lags.extend(now - int(moment) for moment in found)
        if self.window.open:
            self.load.window_events += len(found)
        if DONE in data:
            self.load.whole += 1
            self.window.stream_ended()
            self.transport.close()
        self.rest = data[data.rfind(b"\n") + 1 :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.window.stream_ended()
        if not self.ended.done():
            self.ended.set_result(None)


def _itself(stream: _Stream) -> _Stream:
    return stream


async def run_streams(
    request: Request,
    *,
    streams: int,
    stagger_seconds: float,
    cpu_seconds: Callable[[], float],
) -> StreamLoad:
    """Open `streams` connections, one every `stagger_seconds`, and read each to its end."""
    loop = asyncio.get_running_loop()
    load = StreamLoad()
    window = _Window(load, streams, cpu_seconds)
    running = []
    for _ in range(streams):
        stream = _Stream(request, load, window)
        await loop.create_connection(partial(_itself, stream), request.host, request.port)
        running.append(stream.ended)
        await asyncio.sleep(stagger_seconds)
    async with asyncio.timeout(120):
        await asyncio.gather(*running)
    return load
