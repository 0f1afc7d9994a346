"""The upstream transport on aiohttp. Not httpx: its pool leaks connections of cancelled requests
(encode/httpcore#1093), and here every client that goes away is a cancellation."""

import socket
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from gateway.errors import UpstreamBroken, UpstreamCut, UpstreamTimeout
from gateway.upstream import Call

# Below uvicorn's and vLLM's own 5 s, so that a connection is not reused while it is being closed.
KEEP_ALIVE_SECONDS = 4.0
READ_BYTES = 16 * 1024
# Bounds what one stream can hold here while its client is slow: the loop reads up to this much.
SOCKET_BYTES = 32 * 1024
ANSWER_BYTES = 64 * 1024 * 1024
_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding")


class AiohttpTransport:
    """Pooled connections of one worker. Never follows a redirect, never reads proxy variables."""

    def __init__(self, connections: int):
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=connections,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                socket_factory=_socket,
            ),
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_SKIPPED,
            json_serialize=lambda value: orjson.dumps(value).decode(),
            read_bufsize=READ_BYTES,
        )

    async def send(self, call: Call) -> "AiohttpAnswer":
        """Send and wait for the head; see `Transport`."""
        limits = call.timeouts
        timeout = aiohttp.ClientTimeout(
            total=limits.total, sock_connect=limits.connect, sock_read=limits.first_byte
        )
        try:
            response = await self._session.post(
                call.url,
                data=call.body,
                headers=call.headers,
                timeout=timeout,
                allow_redirects=False,
            )
        except TimeoutError as error:
            raise UpstreamTimeout("The upstream did not answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamBroken("The upstream could not be reached.") from error
        connection = response.connection
        if call.stream and connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = limits.idle
        return AiohttpAnswer(response)

    async def get(self, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """A small GET; see `Transport`."""
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with self._session.get(
                url, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except TimeoutError as error:
            raise UpstreamTimeout("The upstream did not answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamBroken("The upstream could not be reached.") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class AiohttpAnswer:
    """An answer under way."""

    __slots__ = ("_content", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse):
        self._response = response
        self._content = response.content
        self.status = response.status
        self.headers: Mapping[str, Any] = response.headers

    async def read(self) -> bytes:
        """The whole body."""
        if (self._response.content_length or 0) > ANSWER_BYTES:
            raise UpstreamBroken("The upstream's answer is too long.")
        try:
            return await self._response.read()
        except TimeoutError as error:
            raise UpstreamTimeout("The upstream stopped in the middle of its answer.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamBroken("The upstream broke off its answer.") from error

    async def next(self) -> bytes:
        """Bytes as they come; b"" at a clean end."""
        try:
            return await self._content.read(READ_BYTES)
        except TimeoutError as error:
            raise UpstreamTimeout("The upstream stopped in the middle of its answer.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamCut("The upstream broke off its answer.") from error

    def close(self) -> None:
        """Back to the pool if the body was read to its end, closed otherwise."""
        if self._content.at_eof():
            self._response.release()
        else:
            self._response.close()
