"""A real gateway worker as a child process, on a home of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.migrations import upgrade
from gateway.database import open_database
from gateway.keys import KeyStore
from gateway.segment import Damage, Entry, Kind, read_segment
from gateway.settings import load_settings

ROOT = Path(__file__).parent.parent
READY_SECONDS = 30.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configuration(upstream_url: str, **sections: Any) -> dict[str, Any]:
    """A small configuration: every model name goes to one upstream, with a price."""
    given: dict[str, Any] = {
        "server": {"port": free_port(), "drain_seconds": 2},
        "admin": {"port": free_port()},
        "upstreams": {"up": {"url": upstream_url}},
        "models": {"*": {"upstream": "up", "price": {"input": 1.5, "output": 6, "cached": 0.5}}},
        "feedback": {"metrics": {"helpful": {"type": "boolean"}}},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return given


class GatewayProcess:
    """One worker. `start` returns when it is ready; `stop` and `kill` end it."""

    def __init__(self, home: Path, given: dict[str, Any]):
        self.home = home
        self.given = given
        self.config_path = home / "gateway.yaml"
        home.mkdir(parents=True, exist_ok=True)
        self.write(given)
        self.environ = {
            **os.environ,
            "LLMOPS_HOME": str(home),
            "LLMOPS_CONFIG": str(self.config_path),
            "PROMETHEUS_MULTIPROC_DIR": str(home / "run" / "metrics"),
        }
        self.settings = load_settings(self.environ)
        self.settings.metrics_dir.mkdir(parents=True, exist_ok=True)
        upgrade(self.settings.database_url)
        database = open_database(self.settings.database_url)
        self.keys = KeyStore(database, self.settings.key_digest_secret())
        self.key, self.key_record = self.keys.generate(actor="test")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.given['server']['port']}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def write(self, given: dict[str, Any]) -> None:
        """Replace the configuration file in one step."""
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(given))
        fresh.rename(self.config_path)

    def start(self) -> "GatewayProcess":
        """Start the worker and wait until it is ready."""
        with (self.home / "worker.out").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.worker"],
                cwd=ROOT,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return self
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.05)
        raise AssertionError(f"the worker is not ready:\n{self.output()}")

    def output(self) -> str:
        """What it printed."""
        return (self.home / "worker.out").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=20)

    def stop(self) -> None:
        """End it as a person would."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it without warning."""
        self.signal(signal.SIGKILL)

    def entries(self) -> Iterator[Entry]:
        """Every whole record in the spool."""
        for path in sorted(self.settings.spool_dir.glob("[!.]*.seg")):  # others are being made
            for found in read_segment(path):
                if isinstance(found, Damage):
                    assert found.torn, f"damage inside {path}"
                else:
                    yield found

    def finals(self) -> dict[str, Entry]:
        """Final records by request id; each id once."""
        rows: dict[str, Entry] = {}
        for entry in self.entries():
            if entry.kind is Kind.FINAL:
                assert entry.meta["request_id"] not in rows, "a request is in the log twice"
                rows[entry.meta["request_id"]] = entry
        return rows

    def row(self, request_id: str) -> Entry:
        """The final record of one request."""
        return self.finals()[request_id]
