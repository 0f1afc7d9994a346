"""Health checks, each written as an address: `http://…`, `tcp://host:port`, `redis://host:port`,
`file:///path` (touched lately). An empty address is healthy as soon as the process runs.
"""

import socket
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

PROBE_SECONDS = 1.0
FRESH_SECONDS = 30.0


def probe(address: str) -> str | None:
    """None if what is at `address` is healthy, else why not, in a few words."""
    if not address:
        return None
    parts = urlsplit(address)
    try:
        if parts.scheme == "http":
            return _http(parts)
        if parts.scheme == "tcp":
            return _tcp(parts)
        if parts.scheme == "redis":
            return _redis(parts)
        if parts.scheme == "file":
            return _file(Path(parts.path))
    except (OSError, HTTPException) as error:
        return str(error) or type(error).__name__
    raise ValueError(f"a health check cannot be {address!r}")


def _http(parts: SplitResult) -> str | None:
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return None if answer.status == 200 else f"{parts.path} answers {answer.status}"


def _tcp(parts: SplitResult) -> str | None:
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=PROBE_SECONDS):
        return None


def _redis(parts: SplitResult) -> str | None:
    address = (parts.hostname, parts.port or 6379)
    with socket.create_connection(address, timeout=PROBE_SECONDS) as connection:
        connection.sendall(b"PING\r\n")
        answer = connection.recv(64)
    return None if answer == b"+PONG\r\n" else f"PING answers {answer[:40]!r}"


def _file(path: Path) -> str | None:
    age = time.time() - path.stat().st_mtime
    return None if age <= FRESH_SECONDS else f"{path} was last touched {age:.0f} s ago"
