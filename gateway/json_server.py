"""A small ASGI application for the processes behind the gateway: a table of routes, JSON, SSE.

Handlers take a `Request` and return a `Reply`; a `GatewayError` becomes OpenAI's error shape. These
servers stand on loopback or in a private network: who may call is checked by the gateway.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn

from gateway.errors import BadRequest, BodyTooLarge, GatewayError, MethodNotAllowed, NotFound

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
DRAIN_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Request:
    """A request, its body read. Header names are lower case."""

    headers: Mapping[bytes, bytes]
    body: bytes

    def header(self, name: str, default: str) -> str:
        """A header's text."""
        return self.headers.get(name.encode(), default.encode()).decode("latin-1")


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: a whole body, or parts of one as they come."""

    body: bytes | AsyncGenerator[bytes, None]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


Handler = Callable[[Request], Awaitable[Reply]]
Step = Callable[[], Awaitable[None]]


async def _nothing() -> None:
    return None


def json_reply(
    content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Reply:
    """`content` as JSON."""
    return Reply(orjson.dumps(content), status, headers or {})


class JsonServer:
    """The application.

    Attributes:
        routes: handlers by method and path.
        body_bytes: longest body that is read.
        cancel: when the client goes away, cancel its handler.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Handler],
        *,
        body_bytes: int,
        cancel: bool = False,
        start: Step = _nothing,
        stop: Step = _nothing,
    ) -> None:
        self.routes = routes
        self.body_bytes = body_bytes
        self.cancel = cancel
        self._start, self._stop = start, stop

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            handler = self._handler(scope["method"], scope["path"])
            request = Request(dict(scope["headers"]), await self._body(receive))
        except GatewayError as error:
            await _send(_error(error), send)
            return
        work = _answer(handler, request, send)
        if self.cancel:
            await _while_connected(work, receive)
        else:
            await work

    def _handler(self, method: str, path: str) -> Handler:
        handler = self.routes.get((method, path))
        if handler is not None:
            return handler
        if any(known == path for _, known in self.routes):
            raise MethodNotAllowed(f"{method} is not allowed on {path[:128]}.")
        raise NotFound(f"There is no {path[:128]} here.")

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        length = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("The request's body is not complete.")
            part = message.get("body", b"")
            length += len(part)
            if length > self.body_bytes:
                raise BodyTooLarge(f"The body is longer than {self.body_bytes} bytes.")
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)


async def _answer(handler: Handler, request: Request, send: Send) -> None:
    try:
        reply = await handler(request)
    except GatewayError as error:
        reply = _error(error)
    await _send(reply, send)


async def _while_connected(work: Any, receive: Receive) -> None:
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
        if not working.cancelled():
            working.result()
    finally:
        gone.cancel()
        working.cancel()


def _error(error: GatewayError) -> Reply:
    return Reply(error.json(), error.http_status, error.headers)


async def _send(reply: Reply, send: Send) -> None:
    headers = [(b"content-type", reply.content_type.encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in reply.headers.items()]
    if isinstance(reply.body, bytes):
        headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if isinstance(reply.body, bytes):
        await send({"type": "http.response.body", "body": reply.body})
        return
    async with aclosing(reply.body) as parts:
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound, but not listening yet: callers are refused until the server is ready."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def serve(application: JsonServer, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; says the address on standard output first."""
    host, port = listener.getsockname()[:2]
    sys.stdout.write(f"listening on http://{host}:{port}\n")
    sys.stdout.flush()
    configuration = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    uvicorn.Server(configuration).run(sockets=[listener])
