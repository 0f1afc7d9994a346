"""The seam between the gateway and the servers it calls: one small interface, and what can fail.

A transport sends one request and hands back an answer whose bytes are read as they come. It raises
`UpstreamBroken`, `UpstreamCut` or `UpstreamTimeout`, never a client library's own exceptions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from gateway.configuration import Timeouts
from gateway.errors import GatewayError, UpstreamBroken, UpstreamRateLimited, UpstreamRefused

MESSAGE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an upstream: a whole URL, headers, a body already encoded.

    `connections`: how many this worker may hold open to that server.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    timeouts: Timeouts
    stream: bool
    connections: int = 256


class Answer(Protocol):
    """An upstream's answer, after its head has arrived."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, case-insensitive."""

    async def read(self) -> bytes:
        """The whole body; raises UpstreamBroken if it ends early."""

    async def next(self) -> bytes:
        """The bytes that came since the last call; b"" at a clean end, UpstreamCut at another."""

    def close(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""


class Transport(Protocol):
    """Sends calls over pooled connections."""

    async def send(self, call: Call) -> Answer:
        """Send and wait for the answer's head. Cancelling it closes the connection."""

    async def get(self, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """A small GET: status and body."""

    async def close(self) -> None:
        """Close every connection."""


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """The error that an upstream's non-2xx answer becomes for the client.

    Its 4xx is the client's own mistake and is passed on; 401 and 403 concern the gateway's own
    credential, and 3xx and 5xx its health: those are the gateway's 502.
    """
    error = _error_object(body)
    message = str(error.get("message") or f"The upstream answered {status}.")[:MESSAGE_CHARACTERS]
    if status == 429:
        return UpstreamRateLimited(message, headers.get("retry-after"))
    if 400 <= status < 500 and status not in (401, 403, 407):
        param, code = error.get("param"), error.get("code")
        return UpstreamRefused(
            status,
            message,
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    return UpstreamBroken(f"The upstream answered {status}.", code=f"upstream_{status}")


def _error_object(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error", parsed)
    if isinstance(error, dict):
        return error
    # A text, as the Open Inference Protocol has it; ours says the rest beside it.
    return {"message": error, "param": parsed.get("param"), "code": parsed.get("code")}
