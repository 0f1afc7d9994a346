"""A server that speaks JSON over HTTP: every call ends within seconds with an answer, or with why
there is none. Nothing is retried here, redirects are not followed, and the token is never told."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

CALL_SECONDS = 5.0
ANSWER_BYTES = 8 * 1024 * 1024
SHOWN_CHARACTERS = 300
JSON = "application/json"


class ServerAway(RuntimeError):
    """No answer in time, none at all, or one that says that the server is broken."""


class ServerRefused(RuntimeError):
    """The server understood and said no."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class JsonServer:
    """One server. Holds no connection.

    Attributes:
        name: what it is, for messages.
        address: up to the path that all calls share.
        token: bearer token; None: none is sent.
        ca_file: certificates that an https address is checked by; None: the system's.
        seconds: the longest that a call may take.
    """

    name: str
    address: str
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    seconds: float = CALL_SECONDS

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> dict[str, Any]:
        """One call; its answer.

        Raises:
            ServerAway: it may help to try again.
            ServerRefused: it will not, as long as nothing else changes.
        """
        headers = {"accept": JSON}
        if body is not None:
            headers["content-type"] = content_type
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        where = f"{self.name} at {self.address}"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.seconds)) as session,
                session.request(
                    method,
                    f"{self.address.rstrip('/')}{path}",
                    data=None if body is None else orjson.dumps(body),
                    params=query,
                    headers=headers,
                    allow_redirects=False,
                    ssl=self._trusted(),
                ) as answer,
            ):
                content = await answer.content.read(ANSWER_BYTES)
        except TimeoutError as error:
            raise ServerAway(f"{where} does not answer within {self.seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerAway(f"{where} is away: {str(error) or type(error).__name__}") from error
        if answer.status in (408, 429) or answer.status >= 500:
            raise ServerAway(f"{where} answers {answer.status}: {_said(content)}")
        if answer.status >= 300:
            told = f"{where} refuses {method} {path}: {answer.status} {_said(content)}"
            raise ServerRefused(told, answer.status)
        return _object(content, where)

    def _trusted(self) -> ssl.SSLContext | bool:
        if self.ca_file is None:
            return True
        return ssl.create_default_context(cafile=self.ca_file)


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = orjson.loads(content)
    except ValueError as error:
        raise ServerAway(f"{where} answers with no JSON: {_said(content)}") from error
    if not isinstance(found, dict):
        raise ServerAway(f"{where} answers with no JSON object: {_said(content)}")
    return found


def _said(content: bytes) -> str:
    """The message of an error's body, or its beginning."""
    try:
        found = orjson.loads(content)
        text = str(found["message"])
    except (ValueError, TypeError, KeyError):
        text = content.decode(errors="replace")
    return text.strip()[:SHOWN_CHARACTERS] or "nothing"
