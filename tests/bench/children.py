"""Child processes under measurement: started, waited for, their CPU and memory read, stopped."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 10
MB = 1024 * 1024


class NotReady(RuntimeError):
    """A child ended, or did not answer in time; the message has its last lines."""


class Child:
    """A process and its descendants, with their output in a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.output = folder / f"{name}.out"
        with self.output.open("wb") as sink:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def wait_until_answers(self, url: str, *, seconds: float, headers: Mapping[str, str]) -> None:
        """Return once GET `url` gives any answer below 500; raises NotReady."""
        request = urllib.request.Request(url, headers=dict(headers))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise NotReady(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise NotReady(f"{self.name} did not answer at {url} in {seconds} s:\n{self.tail()}")

    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])

    def family(self) -> list[psutil.Process]:
        """The process and its descendants, as many as live."""
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """User and system time of the family so far, of its ended members too."""
        total = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                total += times.children_user + times.children_system
        return total

    def resident_mb(self) -> float:
        """Resident memory of the family, MB of 2**20 bytes."""
        total = 0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / MB

    def stop(self) -> None:
        """End the family: ask, wait, then kill."""
        family = self.family()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
