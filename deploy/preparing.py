"""Runs a part's preparation (the model's conversion) as a child process and follows it."""

import json
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.parts import Preparation

STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """How far a preparation is; `percent` 0 to 100."""

    percent: int
    what: str


class Preparing:
    """A preparation under way. Its standard error goes to `log`."""

    def __init__(self, preparation: Preparation, log: Path, environ: Mapping[str, str]):
        self._preparation = preparation
        self._step = Step(0, preparation.title)
        self._error: str | None = None
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                preparation.command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def step(self) -> Step:
        """The last step that it named."""
        return self._step

    def ended(self) -> bool:
        """Whether it is over."""
        return self._child.poll() is not None and not self._reader.is_alive()

    def error(self) -> str | None:
        """Why it failed; None if it did not, or is still under way."""
        if not self.ended() or self._child.returncode == 0:
            return None
        return self._error or f"{self._preparation.title}: exit code {self._child.returncode}"

    def stop(self) -> None:
        """End it; what it wrote so far is under a temporary name."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                try:
                    said = json.loads(line)
                except ValueError:
                    continue
                if "error" in said:
                    self._error = str(said["error"])
                else:
                    self._step = Step(int(said["percent"]), str(said["what"]))
