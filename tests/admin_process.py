"""A real admin process as a child, and a client of it."""

import http.client
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import orjson
import yaml

from deploy.migrations import upgrade
from gateway.settings import load_settings
from tests.gateway_process import ROOT, free_port

READY_SECONDS = 30.0
SMALLEST: dict[str, Any] = {"upstreams": {}, "models": {}}


class AdminProcess:
    """`python -m gateway.admin` on `home`; a context manager."""

    def __init__(self, home: Path, given: dict[str, Any] | None = None):
        self.home = home
        self.given = {"admin": {"port": free_port()}, **(given or SMALLEST)}
        self.port = self.given["admin"]["port"]
        home.mkdir(parents=True, exist_ok=True)
        path = home / "gateway.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump(self.given))
        self.environ = {**os.environ, "LLMOPS_HOME": str(home), "LLMOPS_CONFIG": str(path)}
        self.settings = load_settings(self.environ)
        upgrade(self.settings.database_url)
        self.credential = self.settings.admin_credential()

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        with (self.home / "admin.out").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.admin"],
                cwd=ROOT,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        while time.monotonic() < self.started + READY_SECONDS and self._process.poll() is None:
            try:
                if self.get("/health/ready")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the admin process is not ready:\n{self.output()}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)

    def output(self) -> str:
        """What it printed."""
        return (self.home / "admin.out").read_text()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a GET with the credential."""
        return self.request("GET", path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of a POST with the credential."""
        return self.request("POST", path, orjson.dumps(body))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: list[tuple[str, str]] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON (or bytes) of any request; `headers` replace the credential's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path)
            given = [("authorization", f"Bearer {self.credential}")] if headers is None else headers
            for name, value in given:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-type", "application/json")
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        return answer.status, orjson.loads(content) if is_json else content
