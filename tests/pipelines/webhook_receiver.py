"""A receiver of webhooks on a real socket that answers, and fails, as it is told."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return orjson.loads(self.body)


class Receiver(ThreadingHTTPServer):
    """Attributes:
    received: requests in their order.
    script: answers to come: a status, `cut` (no answer), or a status with a `retry-after`;
        200 when it is empty.
    delay: seconds before each answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[Received] = []
        self.script: deque[int | str | tuple[int, int]] = deque()
        self.delay = 0.0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(Received(self.path, headers, body))
        time.sleep(self.server.delay)
        answer = self.server.script.popleft() if self.server.script else 200
        if answer == "cut":
            self.close_connection = True
            return
        status, wait = answer if isinstance(answer, tuple) else (int(answer), None)
        self.send_response(status)
        if wait is not None:
            self.send_header("retry-after", str(wait))
        if status in (301, 302, 307):
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def webhook_receiver() -> Iterator[Receiver]:
    """The receiver, for as long as the block lasts."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
