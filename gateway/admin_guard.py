"""The admin API's door: nothing but the health checks gets past it without the credential.

It wraps the whole application, so a route that is added later is behind it without a word. It also
reads the body: whole, at most 1 MiB, and JSON as RFC 8259 has it, or the application is not asked.
"""

import hashlib
import hmac

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BadRequest, BodyTooLarge, GatewayError, Unauthorized

PUBLIC = frozenset({"/health/live", "/health/ready"})
BODY_BYTES = 1024 * 1024
BEARER = b"bearer "


class NotAdmin(Unauthorized):
    """No credential, or a wrong one: always the same answer."""

    def __init__(self) -> None:
        super().__init__()
        self.message = (
            "Invalid admin credential: send LLMOPS_ADMIN_KEY, or what is in secrets/admin.secret "
            "under LLMOPS_HOME, as 'Authorization: Bearer …'."
        )


class AdminGuard:
    """ASGI middleware around the admin application."""

    def __init__(self, app: ASGIApp, credential: str):
        self._app = app
        self._expected = _digest(credential.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC:
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            body = await read_body(receive)
        except GatewayError as error:
            await answer(error, send)
            return
        await self._app(scope, _Replay(body, receive), send)

    def _check(self, scope: Scope) -> None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) > 1:
            raise BadRequest("send one Authorization header")
        token = given[0][len(BEARER) :].strip() if given else b""
        if not given or given[0][: len(BEARER)].lower() != BEARER:
            token = b""
        if not hmac.compare_digest(_digest(token), self._expected):
            raise NotAdmin


class _Replay:
    """The body again, for the application; then what the connection says."""

    def __init__(self, body: bytes, receive: Receive):
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return await self._receive() if message is None else message


async def read_body(receive: Receive) -> bytes:
    """The whole body, known to be JSON if there is one. Raises BadRequest, BodyTooLarge."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES:
            raise BodyTooLarge(f"the body is over {BODY_BYTES} bytes")
    if body:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
    return bytes(body)


async def answer(error: GatewayError, send: Send) -> None:
    """Send `error` in OpenAI's shape."""
    body = error.json()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error.headers,
    }
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.http_status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _digest(credential: bytes) -> bytes:
    # Both sides are digested, so that the comparison tells not even the length.
    return hashlib.sha256(credential).digest()
