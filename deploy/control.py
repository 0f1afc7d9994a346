"""The keeper's remote control: XML-RPC over a Unix socket, as supervisord speaks it."""

import socket
import xmlrpc.client
from http.client import HTTPConnection
from pathlib import Path

CALL_SECONDS = 10.0


class UnixConnection(HTTPConnection):
    """HTTP over the Unix socket at `path`."""

    def __init__(self, path: Path):
        super().__init__("localhost", timeout=CALL_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Open the socket. Raises OSError where nothing listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CALL_SECONDS)
        self.sock.connect(str(self._path))


class UnixTransport(xmlrpc.client.Transport):
    """Carries XML-RPC calls over a Unix socket."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def make_connection(self, host: tuple[str, dict[str, str]] | str) -> HTTPConnection:
        """A connection of its own for every call."""
        return UnixConnection(self._path)


def control(path: Path) -> xmlrpc.client.ServerProxy:
    """The keeper that listens at `path`. Calls raise OSError or xmlrpc.client.Error."""
    return xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=UnixTransport(path))
