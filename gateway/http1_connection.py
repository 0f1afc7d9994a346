"""One HTTP/1.1 connection to an upstream: a parser, a protocol, and nothing in between.

It carries one call at a time (RFC 9112 without pipelining). It can be used again only if its answer
was read to the end, the upstream keeps it open, and nothing came after the answer.
"""

import asyncio
from typing import Any, Protocol, cast

import httptools

from gateway.errors import UpstreamBroken, UpstreamCut, UpstreamFailure, UpstreamTimeout
from gateway.upstream import Call

HEAD_BYTES = 64 * 1024
HEAD_FIELDS = 256
HELD_BYTES = 16 * 1024
NO_LENGTH = -1


class Keeper(Protocol):
    """Whoever keeps connections between calls. `buffer` is filled and parsed in one step of the
    event loop, so that one serves all of them."""

    buffer: memoryview

    def keep(self, connection: "Http1Connection") -> None:
        """Take it back for the next call."""

    def drop(self, connection: "Http1Connection") -> None:
        """Forget it: it is closed, or about to be."""


class Http1Connection(asyncio.BufferedProtocol):
    """Sends a call, parses its answer, pauses the upstream while nobody reads.

    Attributes:
        status, headers: the answer's, once `head` has returned.
        ended: its last byte is there.
        used: when the last call ended, the loop's time.
    """

    def __init__(self, keeper: Keeper, loop: asyncio.AbstractEventLoop) -> None:
        self.keeper = keeper
        self.loop = loop
        self.closed = False
        self.busy = False
        self.used = loop.time()
        self.ended = self.headed = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._failure: UpstreamFailure | None = None
        self._pieces: list[bytes] = []
        self._paused = self._reusable = self._heard = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.keeper.drop(self)
        if not self.busy or self.ended:
            return
        if self.headed and self._length == NO_LENGTH and exc is None:
            self.ended, self._reusable = True, False  # a body that the connection's end delimits
        else:
            self._failure = self._failure or UpstreamCut("The upstream broke off its answer.")
        self._wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.keeper.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.busy or self.ended:
            # Nobody asked for this: what follows on this connection cannot be trusted.
            self._reusable = False
            self.transport.abort()
            return
        if not self.headed:
            self._head_bytes += nbytes
        self._heard = True
        try:
            self._parser.feed_data(self.keeper.buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._give_up("The upstream's answer is not HTTP.")
            return
        if not self.headed:
            if self._head_bytes >= HEAD_BYTES:
                self._give_up("The upstream's head is too large.")
            return
        if self._held > HELD_BYTES and not self._paused and not self.ended:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.ended:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEAD_FIELDS:
            raise ValueError("too many header fields")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self.headed = True
        if "transfer-encoding" in self.headers or self.status in (204, 304):
            self._length = 0
        elif "content-length" in self.headers:
            self._length = int(self.headers["content-length"])

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        if self.status < 200:
            self.headers = {}
            return
        self.ended = True
        self._reusable = self._reusable and self._parser.should_keep_alive()

    # What the pool and the answer call.

    def start(self, data: bytes, call: Call) -> None:
        """Write a request and get ready for its answer."""
        self.busy = True
        self.headed = self.ended = False
        self.status = 0
        self.headers = {}
        self._reusable = True
        self._failure = None
        self._pieces = []
        self._held = self._head_bytes = 0
        self._length = NO_LENGTH
        self._parser: Any = httptools.HttpResponseParser(self)
        self._call = call
        self._heard = False
        self._last = self.loop.time()
        self._end = self._last + call.timeouts.total
        self.transport.write(data)

    async def head(self) -> None:
        """Return when the answer's head is there; raises as `Transport.send` does."""
        while not self.headed:
            if isinstance(self._failure, UpstreamCut):
                raise UpstreamBroken("The upstream could not be reached.") from self._failure
            if self._failure is not None:
                raise self._failure
            await self._wait()

    async def body_part(self) -> bytes:
        """What came of the body since the last time; b"" at its end."""
        while not self._pieces:
            if self.ended:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._wait()
        pieces, self._pieces, self._held = self._pieces, [], 0
        if self._paused:
            self._paused = False
            self._heard = True
            if not self.closed:
                self.transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def expire(self, now: float) -> None:
        """Fail the call if its time is over. Called ten times a second, which is cheaper than a
        timer for each byte. A reader that is slow itself is not held against the upstream."""
        if self._heard:
            self._heard, self._last = False, now
        timeouts = self._call.timeouts
        wait = timeouts.idle if self.headed and self._call.stream else timeouts.first_byte
        if now < (self._end if self._paused else min(self._end, self._last + wait)):
            return
        if self.ended:  # all of it is here, but its reader takes too long: others may connect
            if now >= self._end:
                self.keeper.drop(self)
                self.transport.abort()
            return
        what = "stopped in the middle of its answer" if self.headed else "did not answer in time"
        self._failure = UpstreamTimeout(f"The upstream {what}.")
        self._wake()
        self.transport.abort()

    def finish(self) -> None:
        """The call is over: keep the connection for the next one, or cut it."""
        if not self.busy:
            return
        keep = self.ended and self._reusable and not self.closed and not self._pieces
        self.busy = False
        self._pieces = []
        self.used = self.loop.time()
        if keep:
            self.keeper.keep(self)
        else:
            self.keeper.drop(self)
            self.transport.abort()

    def _give_up(self, why: str) -> None:
        self._failure = UpstreamBroken(why)
        self._wake()
        self.transport.abort()

    async def _wait(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
