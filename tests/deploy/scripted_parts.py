"""Tiny real parts, and a stack of them in a folder of its own under a real keeper."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from deploy.keeper import Keeper
from deploy.leftovers import leftovers
from deploy.local import bring_up, take_down
from deploy.parts import Part
from deploy.startup import Progress
from gateway.settings import Settings, load_settings

SERVER = Path(__file__).with_name("scripted_server.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server(
    name: str, *, needs: Sequence[str] = (), delay: float = 0, child: Path | None = None
) -> Part:
    """A part that answers HTTP after `delay` seconds and dies at `/die`."""
    port = free_port()
    command = (sys.executable, str(SERVER), str(port), str(delay), str(child or ""))
    return Part(
        name=name,
        command=command,
        check=f"http://127.0.0.1:{port}/",
        needs=tuple(needs),
        address=("127.0.0.1", port),
        start_seconds=20,
        stop_seconds=3,
    )


def script(name: str, code: str, **fields: object) -> Part:
    """A part that runs `code` and is healthy as soon as it runs."""
    command = (sys.executable, "-c", f"exec({code!r})")
    return Part(name=name, command=command, **fields)  # type: ignore[arg-type]


class ScriptedStack:
    """A stack in `home`. `seen` holds every stage that each part went through, in order."""

    def __init__(self, home: Path):
        environ = {key: value for key, value in os.environ.items() if "LLMOPS" not in key}
        self.settings: Settings = load_settings({**environ, "LLMOPS_HOME": str(home)})
        self.home = self.settings.home
        self.keeper = Keeper(self.home)
        self.seen: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def up(self, *parts: Part, before: Callable[[], None] = lambda: None) -> None:
        bring_up(self.settings, parts, self.home / "gateway.yaml", before, self._note)

    def down(self) -> int:
        return take_down(self.home, lambda text: None)

    def left(self) -> list[psutil.Process]:
        return leftovers(self.home)

    def pid(self, process: str) -> int:
        return next(state.pid for state in self.keeper.states() if state.name == process)

    def _note(self, progress: Sequence[Progress]) -> None:
        for item in progress:
            news = (item.part.name, str(item.stage))
            if news not in self.seen:
                self.seen.append(news)
            if item.note and item.note not in self.notes:
                self.notes.append(item.note)


@contextlib.contextmanager
def scripted_stack(home: Path) -> Iterator[ScriptedStack]:
    stack = ScriptedStack(home)
    try:
        yield stack
    finally:
        stack.down()


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until `true()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def llmops(
    *arguments: str, home: Path, seconds: float = 60, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        env={**os.environ, "LLMOPS_HOME": str(home), "COLUMNS": "200", **environ},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
