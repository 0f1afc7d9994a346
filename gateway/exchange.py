"""One request and its answer on the wire: the body as it is read, the answer as it is sent."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from gateway.errors import BadRequest, BodyTooLarge, GatewayError
from gateway.protocol import Connection, Cycle

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
PRIVATE = (b"cache-control", b"private, no-store")


class Disconnected(Exception):
    """The client went away before its request was read."""


class Exchange:
    """The two ends of one request.

    Attributes:
        started: arrival, `time.perf_counter()`.
        begun: the answer's head is out; an error can only be an event now.
    """

    __slots__ = (
        "_cycle", "_receive", "_send", "begun", "connection", "headers", "path", "started",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.started = time.perf_counter()
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.connection: Connection = scope.get("llmops.connection") or Connection()
        self.begun = False
        self._cycle: Cycle | None = scope.get("llmops.cycle")
        self._receive = receive
        self._send = send

    async def read_body(self, limit: int) -> bytes:
        """The whole body; raises BodyTooLarge before more than `limit` bytes are held."""
        self._check_length(limit)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body: bytes = message["body"]
        if not message["more_body"]:
            if len(body) > limit:
                raise BodyTooLarge(f"The body is over {limit} bytes.")
            return body
        pieces, size = [body], len(body)
        while message["more_body"]:
            if size > limit:
                raise BodyTooLarge(f"The body is over {limit} bytes.")
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            pieces.append(message["body"])
            size += len(message["body"])
        if size > limit:
            raise BodyTooLarge(f"The body is over {limit} bytes.")
        return b"".join(pieces)

    async def begin(self, status: int, headers: HeaderList) -> None:
        """Send the head."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send bytes of the body; waits while the client is slow."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last bytes."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole JSON answer."""
        headers.append(JSON)
        if self._cycle is not None:
            self.begun = True
            await self._cycle.answer(status, headers, body)
            return
        headers.append((b"content-length", b"%d" % len(body)))
        await self.begin(status, headers)
        await self.end(body)

    async def fail(self, error: GatewayError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Send an error: an answer of its own or, after the head, a last event without `[DONE]`."""
        if self.begun:
            await self.end(b"data: " + error.json() + b"\n\n")
            return
        extra = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await self.answer(error.http_status, [*headers, *extra], self.body_of(error))

    def body_of(self, error: GatewayError) -> bytes:
        """An error as an answer's body, in the shape of the protocol that the path belongs to."""
        return error.json(self.path)

    def _check_length(self, limit: int) -> None:
        length = self.headers.get(b"content-length")
        if length is None:
            return
        if not length.isdigit():
            raise BadRequest("Content-Length must be a number.")
        if int(length) > limit:
            raise BodyTooLarge(f"The body is over {limit} bytes.")
