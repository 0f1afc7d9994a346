"""Health checks against real sockets."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from deploy.health import FRESH_SECONDS, probe


def _answering(data: bytes) -> tuple[socket.socket, int]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # nobody asked, or nobody waited for the answer
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return server, server.getsockname()[1]


@pytest.mark.parametrize(
    ("scheme", "data", "said"),
    [
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", None),
        ("http", b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "/ answers 503"),
        ("http", b"SSH-2.0\r\n", "SSH-2.0"),
        ("redis", b"+PONG\r\n", None),
        ("redis", b"-LOADING\r\n", "PING answers b'-LOADING"),
        ("tcp", b"", None),
    ],
)
def test_servers(scheme: str, data: bytes, said: str | None):
    server, port = _answering(data)
    with server:
        answer = probe(f"{scheme}://127.0.0.1:{port}{'/' if scheme == 'http' else ''}")
    assert answer is None if said is None else said in (answer or "")


def test_nobody_there():
    assert "refused" in (probe("tcp://127.0.0.1:1") or "")
    assert "refused" in (probe("http://127.0.0.1:1/x") or "")


def test_a_sign_of_life(tmp_path: Path):
    file = tmp_path / "alive"
    assert probe(file.as_uri()) is not None
    file.touch()
    assert probe(file.as_uri()) is None
    old = file.stat().st_mtime - FRESH_SECONDS - 5
    os.utime(file, (old, old))
    assert "last touched" in (probe(file.as_uri()) or "")


def test_no_check_is_healthy():
    assert probe("") is None
    with pytest.raises(ValueError, match="ftp"):
        probe("ftp://127.0.0.1")
