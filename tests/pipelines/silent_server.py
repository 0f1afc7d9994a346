"""Servers that are there and of no use: one accepts and is silent, one sends a byte at a time."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_server(trickle: bytes = b"", every: float = 0.2) -> Iterator[str]:
    """Address of a server that takes connections and answers nothing, or `trickle` byte by byte,
    over and over."""
    over = threading.Event()
    taken: list[socket.socket] = []

    def drip(connection: socket.socket) -> None:
        try:
            while trickle:
                for byte in trickle:
                    connection.sendall(bytes([byte]))
                    if over.wait(every):
                        return
        except OSError:
            pass

    def take() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()
