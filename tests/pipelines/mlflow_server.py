"""A real `mlflow server` for tests, with its own folder; one for the whole run (tests/conftest.py).

It takes 10 to 25 seconds to be ready. `frozen` stops its processes for a while: the port accepts
and nobody answers, as when a disk or a database hangs.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gateway_process import free_port

READY_SECONDS = 90.0


class MLflowServer:
    """The server, its runs and files in `folder`. `url` is its tracking URI."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "MLflowServer":
        """Start it and wait until it answers."""
        command = [
            sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"MLflow is not ready:\n{(self.folder / 'output').read_text()}")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold all its processes still for the block."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and wait for the end."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        try:
            self._process.wait(timeout=10)
        finally:
            try:
                self._signal(signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)
