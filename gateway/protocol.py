"""HTTP/1.1 at the door: uvicorn's protocol with limits on what a request may be before it is one.

ASGI middleware sees a request only when its head is parsed, and its body as it comes; it can
neither bound the head nor the time that either takes. Requests that two parsers could read in two
ways (RFC 9112, sections 3, 5 and 6) are refused here, in OpenAI's error shape, and the connection
is closed.
"""

import asyncio
import re
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.configuration import Limits
from gateway.errors import BadRequest, GatewayError

SINGLE = frozenset((b"host", b"authorization", b"content-length", b"content-type"))
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
FRAMING_SLACK_BYTES = 64 * 1024


class RequestTimeout(BadRequest):
    """The request took too long to arrive."""

    http_status = 408
    code = "request_timeout"


class HeadTooLarge(BadRequest):
    """The request line and header fields are over the limit."""

    http_status = 431
    code = "request_head_too_large"


class Connection:
    """A client's connection, as its current request sees it."""

    __slots__ = ("closed", "on_close")

    def __init__(self) -> None:
        self.closed = False
        self.on_close: Callable[[], object] | None = None

    def unwatch(self, on_close: Callable[[], object] | None) -> None:
        """Stop telling `on_close`. The connection may already serve a request that came after."""
        if self.on_close is on_close:
            self.on_close = None

    def lose(self) -> None:
        """The client is gone: tell whoever works for it."""
        self.closed = True
        if self.on_close is not None:
            self.on_close()


class Cycle(RequestResponseCycle):
    """A request and its answer; a whole answer goes out in one write instead of two."""

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send head and body at once. The headers are the gateway's own: nothing of a caller's may
        be in them unchecked, because only `send` looks for line breaks."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        parts = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"content-length: %d\r\n\r\n" % len(body))
        if self.scope["method"] != "HEAD":
            parts.append(body)
        self.transport.write(b"".join(parts))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Subclassed by `bounded_protocol`, which sets `limits`."""

    limits: ClassVar[Limits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client_connection = Connection()
        self._refusal: GatewayError | None = None
        self._unsent, self._taken = 0, self.loop.time()
        self._begin_wait(idle=False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.client_connection.lose()

    def data_received(self, data: bytes) -> None:
        if self._waiting == "idle":
            self._begin_wait(idle=False)
        if self._waiting == "head":
            data = ignore_upgrade(data)
        self._received += len(data)
        if self._received > self._allowed():
            self._refuse(HeadTooLarge("The request's head or framing is too large."))
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["llmops.connection"] = self.client_connection  # type: ignore[typeddict-unknown-key]
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind the one that is being answered.

        In place of uvicorn's own, which makes a cycle of its own class, offers WebSockets, and
        decodes paths: here a path is plain or refused.
        """
        refusal = refuse_head(self.url, self.headers)
        if refusal is None and self.parser.should_upgrade():
            refusal = BadRequest("Upgrades are not offered.", code="bad_framing")
        if refusal is not None:
            self._stop(refusal)
        self._waiting = "body"
        self._since = self.loop.time()
        path, _, query = self.url.partition(b"?")
        version = self.parser.get_http_version()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = path.decode("latin-1")
        self.scope["raw_path"] = path
        self.scope["query_string"] = query
        before, self.cycle = self.cycle, self._new_cycle(version)
        self.scope["llmops.cycle"] = self.cycle  # type: ignore[typeddict-unknown-key]
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _new_cycle(self, version: str) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )

    def on_message_complete(self) -> None:
        self._waiting = "nothing"
        self._received = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self._begin_wait(idle=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waiting == "nothing" and not self.pipeline:
            self._begin_wait(idle=True)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or BadRequest(msg))

    def sweep(self, now: float) -> None:
        """Close the connection if its request is too slow to arrive, or if its answer is not taken.
        Called about once a second."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._taken = now
        self._unsent = unsent
        if now - self._taken > self.limits.stall_seconds:
            self.transport.abort()
            return
        allowed = {"head": self.limits.head_seconds, "body": self.limits.body_seconds}
        if now - self._since > allowed.get(self._waiting, float("inf")):
            self._refuse(RequestTimeout(f"The request's {self._waiting} took too long to arrive."))

    def _begin_wait(self, *, idle: bool) -> None:
        self._waiting = "idle" if idle else "head"
        self._since = self.loop.time()
        self._received = 0
        self._head_bytes = 0

    def _allowed(self) -> int:
        return self.limits.head_bytes + 2 * self.limits.body_bytes + FRAMING_SLACK_BYTES

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.head_bytes or (
            len(self.headers) >= self.limits.head_fields
        ):
            self._stop(HeadTooLarge("The request's head is too large."))

    def _stop(self, refusal: GatewayError) -> None:
        """Make the parser give up; `send_400_response` then answers with `refusal`."""
        self._refusal = refusal
        raise ValueError(refusal.message)

    def _refuse(self, refusal: GatewayError) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = refusal.json()
            self.transport.write(
                b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (refusal.http_status, len(body), body)
            )
        self.transport.close()


def bounded_protocol(limits: Limits) -> type[BoundedProtocol]:
    """The protocol class for these limits, as uvicorn wants it."""
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})


def ignore_upgrade(data: bytes) -> bytes:
    """Make an Upgrade field of a head one that means nothing, as RFC 9110 (7.8) allows.

    Java's HttpClient asks every plain server for HTTP/2 in this way. The parser would stop after
    the head and leave the body to be read as another request.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-upgrd:", head) + end + rest if _UPGRADE.search(head) else data


def refuse_head(url: bytes, headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
    """The error for a head that must not be served, or None."""
    path = url.partition(b"?")[0]
    if not path.startswith(b"/") or b"%" in path or b"//" in path or b"/." in path:
        return BadRequest("The request's path is not in its plain form.", code="invalid_path")
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in SINGLE and name in seen:
            return BadRequest(f"Two {name.decode()} headers.", code="duplicate_header")
        seen[name] = value
    if b"host" not in seen:
        return BadRequest("No Host header.", code="missing_host")
    if b"transfer-encoding" in seen:
        if b"content-length" in seen:
            return BadRequest("Both Content-Length and Transfer-Encoding.", code="bad_framing")
        if seen[b"transfer-encoding"].lower() != b"chunked":
            return BadRequest("Transfer-Encoding must be chunked.", code="bad_framing")
    if seen.get(b"content-encoding", b"identity").lower() != b"identity":
        return BadRequest("Content-Encoding is not accepted.", code="content_encoding")
    return None
