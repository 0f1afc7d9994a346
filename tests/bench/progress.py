"""What the benchmark is doing, on one line that is rewritten (or a line each, in a file)."""

import time
from typing import TextIO


class Progress:
    """Called with what begins now."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.started = time.monotonic()

    def __call__(self, what: str) -> None:
        line = f"[{time.monotonic() - self.started:5.0f} s] {what}"
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[K{line}")
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()
