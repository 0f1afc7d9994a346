"""An OpenAI-compatible server on a real socket that answers, and misbehaves, as it is told.

The request's model name is the script: see `tests.scripted_answers` for its words. Endpoints:
`POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/responses`,
`GET /v1/models`, `/health`.

In a test:

    async with ScriptedUpstream() as upstream:
        ... upstream.url ... upstream.calls ...

As a process of its own (`ScriptedUpstreamProcess` starts and stops one):

    python -m tests.scripted_upstream --port 0

which prints `{"port": N, "url": "http://127.0.0.1:N/v1"}` and then serves. What it saw is at
`GET /_calls` (a JSON list of `Call`) and `GET /_counts`; `POST /_reset` forgets it.
"""

import argparse
import asyncio
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tests.scripted_connection import Connection
from tests.scripted_record import Call, Recorder

__all__ = ["Call", "ScriptedUpstream", "ScriptedUpstreamProcess"]


class ScriptedUpstream:
    """The server; an asynchronous context manager. `port` 0 takes a free one.

    Attributes:
        url: address up to and with `/v1`.
        calls, counts: what it saw; see `tests.scripted_record`.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.recorder = Recorder()
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> list[Call]:
        return self.recorder.calls

    @property
    def counts(self) -> Counter[str]:
        return self.recorder.counts

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connect, "127.0.0.1", self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening and drop every connection; new ones are refused."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.transport.abort()
            await self._server.wait_closed()
            self._server = None
        await asyncio.sleep(0)

    def _connect(self) -> Connection:
        return Connection(self.recorder, self.connections)


class ScriptedUpstreamProcess:
    """The server as a child process; a context manager."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.scripted_upstream", "--port", "0"]
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)
        assert self._process.stdout is not None
        started = orjson.loads(self._process.stdout.readline())
        self.port: int = started["port"]
        self.url: str = started["url"]
        self.pid = self._process.pid
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def calls(self) -> list[dict[str, Any]]:
        """Every request it saw, as `Call` with plain values."""
        found: list[dict[str, Any]] = self._ask("/_calls")
        return found

    def counts(self) -> dict[str, int]:
        """Its counters."""
        found: dict[str, int] = self._ask("/_counts")
        return found

    def reset(self) -> None:
        """Forget everything seen."""
        self._ask("/_reset")

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return orjson.loads(answer.read())


async def serve(port: int) -> None:
    """Serve until the process is ended; says on standard output where."""
    async with ScriptedUpstream(port) as upstream:
        where = {"port": upstream.port, "url": upstream.url}
        print(orjson.dumps(where).decode(), flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(port))
    else:
        uvloop.run(serve(port))


if __name__ == "__main__":
    main()
