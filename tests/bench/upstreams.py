"""What stands behind every contender: nginx with a constant answer, and the scripted upstream."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.children import Child, free_port
from tests.bench.nginx import proxy_server, start_nginx, unary_server

EVENTS = 120
PACE_MS = 50
STREAM_SCRIPT = f"chat,timestamp,tokens={EVENTS},paced-ms={PACE_MS}"


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Base addresses, without `/v1`.

    Attributes:
        unary: answers every POST at once with the same chat completion.
        stream: the scripted upstream.
    """

    unary: str
    stream: str
    children: tuple[Child, ...]


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for the run's files, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_upstreams(folder: Path) -> Iterator[Upstreams]:
    """Both upstreams, answering."""
    unary_port, stream_port = free_port(), free_port()
    unary = start_nginx("upstream-nginx", unary_server(unary_port), folder=folder)
    command = [sys.executable, "-m", "tests.scripted_upstream", "--port", str(stream_port)]
    stream = Child("upstream-scripted", command, folder=folder)
    try:
        for child, port in ((unary, unary_port), (stream, stream_port)):
            url = f"http://127.0.0.1:{port}"
            child.wait_until_answers(f"{url}/v1/models", seconds=15, headers={})
        yield Upstreams(
            f"http://127.0.0.1:{unary_port}", f"http://127.0.0.1:{stream_port}", (unary, stream)
        )
    finally:
        unary.stop()
        stream.stop()


def start_nginx_proxy(folder: Path, upstreams: Upstreams) -> tuple[Child, str, str]:
    """nginx as a plain proxy before both; returns it with its two addresses."""
    unary_port, stream_port = free_port(), free_port()
    servers = proxy_server("unary", unary_port, upstreams.unary, buffering="on")
    servers += proxy_server("stream", stream_port, upstreams.stream, buffering="off")
    child = start_nginx("nginx", servers, folder=folder)
    return child, f"http://127.0.0.1:{unary_port}", f"http://127.0.0.1:{stream_port}"
