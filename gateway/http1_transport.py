"""The upstream transport for plain HTTP/1.1.

A call that fails before its answer is never sent twice: the upstream may have acted on it. HTTPS,
where the time of a handshake and of encryption counts for more, goes through aiohttp.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.configuration import Timeouts
from gateway.errors import UpstreamBroken, UpstreamCut
from gateway.http1_connection import Http1Connection
from gateway.http1_pool import Pool
from gateway.upstream import Answer, Call, Transport

SWEEP_SECONDS = 0.1
ANSWER_BYTES = 64 * 1024 * 1024
SMALL = Timeouts(connect=2, first_byte=5, idle=5, total=5)


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, taken apart once: where to connect, and the request's first lines."""

    pool: Pool
    lines: bytes


class Http1Transport:
    """Pooled connections of one worker; `secure` takes the calls to `https://`."""

    def __init__(self, secure: Transport):
        self._secure = secure
        self._pools: dict[tuple[str, int], Pool] = {}
        self._addresses: dict[tuple[str, str], Address] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(self, call: Call) -> Answer:
        """Send and wait for the head; see `Transport`."""
        if not call.url.startswith("http://"):
            return await self._secure.send(call)
        return await self._exchange("POST", call)

    async def get(self, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """A small GET; see `Transport`."""
        if not url.startswith("http://"):
            return await self._secure.get(url, headers)
        answer = await self._exchange("GET", Call(url, headers, b"", SMALL, stream=False))
        try:
            return answer.status, await answer.read()
        finally:
            answer.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for pool in self._pools.values():
            pool.close()
        await self._secure.close()

    async def _exchange(self, method: str, call: Call) -> "Http1Answer":
        address = self._addresses.get((method, call.url)) or self._address(method, call.url)
        address.pool.most = call.connections
        connection = await address.pool.take(call.timeouts)
        if self._sweeper is None:
            self._watch()
        try:
            connection.start(_request(address.lines, call.headers, call.body), call)
            await connection.head()
        except BaseException:
            connection.finish()
            raise
        return Http1Answer(connection)

    def _address(self, method: str, url: str) -> Address:
        parts = urlsplit(url)
        place = (parts.hostname or "", parts.port or 80)
        pool = self._pools.get(place)
        if pool is None:
            pool = self._pools[place] = Pool(*place)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = f"{method} {target} HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n"
        address = Address(pool, lines.encode("latin-1"))
        if method == "POST":  # a GET may name anything; calls are few
            self._addresses[method, url] = address
        return address

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        now = loop.time()
        for pool in self._pools.values():
            pool.sweep(now)
        if any(pool.open for pool in self._pools.values()):
            self._watch()


class Http1Answer:
    """An answer under way."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: Http1Connection):
        self._connection = connection
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers

    async def read(self) -> bytes:
        """The whole body."""
        connection = self._connection
        pieces, size = [], 0
        try:
            while data := await connection.body_part():
                pieces.append(data)
                size += len(data)
                if size > ANSWER_BYTES:
                    raise UpstreamBroken("The upstream's answer is too long.")
        except UpstreamCut as error:
            raise UpstreamBroken("The upstream broke off its answer.") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def next(self) -> bytes:
        """Bytes as they come; b"" at a clean end."""
        return await self._connection.body_part()

    def close(self) -> None:
        """Back to the pool if the body was read to its end, closed otherwise."""
        self._connection.finish()


def _request(lines: bytes, headers: Mapping[str, str], body: bytes) -> bytes:
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return b"%bcontent-length: %d\r\n%b\r\n%b" % (lines, len(body), fields.encode("latin-1"), body)
