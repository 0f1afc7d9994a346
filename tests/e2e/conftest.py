"""The whole stack, started once by the real `llmops up` and shared by every end-to-end test."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
UP_SECONDS = 600
COMMAND_SECONDS = 60


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up. `base_url` ends with `/v1`; `output` is what `llmops up` printed."""

    home: Path
    config_path: Path
    base_url: str
    admin_url: str
    mlflow_url: str
    engine_url: str
    api_key: str
    admin_key: str
    output: str
    environ: dict[str, str]

    def llmops(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command against this stack; returns what it printed. Fails if it fails."""
        done = run_llmops(*arguments, environ=self.environ, seconds=seconds)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def run_llmops(
    *arguments: str, environ: dict[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environ},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(900))  # the first one waits for the stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """vLLM with SmolLM2, Redis, MLflow, embedding server, shipper, admin and gateway, all real."""
    engine_python = Path(
        os.environ.get("LLMOPS_ENGINE_PYTHON") or ROOT / ".venv-engine" / "bin" / "python"
    )
    if not engine_python.exists():
        pytest.skip(f"not run: no engine at {engine_python}; run: make engine")
    home = tmp_path_factory.mktemp("stack") / "home"
    home.mkdir()
    ports = _free_ports("gateway", "admin", "embeddings", "kserve", "mlflow", "engine", "redis")
    config_path = home / "e2e.yaml"
    config_path.write_text(yaml.safe_dump(configuration(ports)))
    environ = {"LLMOPS_HOME": str(home), "LLMOPS_ENGINE_PYTHON": str(engine_python)}
    done = run_llmops("up", "--config", str(config_path), environ=environ, seconds=UP_SECONDS)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield RunningStack(
            home=home,
            config_path=config_path,
            base_url=f"http://127.0.0.1:{ports['gateway']}/v1",
            admin_url=f"http://127.0.0.1:{ports['admin']}",
            mlflow_url=f"http://127.0.0.1:{ports['mlflow']}",
            engine_url=f"http://127.0.0.1:{ports['engine']}",
            api_key=(home / "secrets" / "dev.key").read_text().strip(),
            admin_key=(home / "secrets" / "admin.secret").read_text().strip(),
            output=done.stdout,
            environ=environ,
        )
    finally:
        down = run_llmops("down", environ=environ, seconds=120)
        assert down.returncode == 0, down.stdout + down.stderr


def configuration(ports: dict[str, int]) -> dict[str, object]:
    """The packaged default on free ports, with a model cache that outlives the test run."""
    content = yaml.safe_load((ROOT / "deploy" / "llmops.yaml").read_text())
    content["server"]["port"] = ports["gateway"]
    content["admin"]["port"] = ports["admin"]
    content["upstreams"]["engine"]["url"] = f"http://127.0.0.1:{ports['engine']}/v1"
    content["upstreams"]["embeddings"]["url"] = f"http://127.0.0.1:{ports['embeddings']}/v1"
    content["upstreams"]["kserve"]["url"] = f"http://127.0.0.1:{ports['kserve']}/v2"
    content["embeddings"]["port"] = ports["embeddings"]
    content["model_server"]["port"] = ports["kserve"]
    for section in ("embeddings", "model_server"):
        content[section]["redis_url"] = f"redis://127.0.0.1:{ports['redis']}/0"
    content["traces"]["endpoint"] = f"http://127.0.0.1:{ports['mlflow']}/v1/traces"
    content["mlflow"]["tracking_uri"] = f"http://127.0.0.1:{ports['mlflow']}"
    for part in ("engine", "redis", "mlflow"):
        content["stack"][part]["port"] = ports[part]
    models = os.environ.get("LLMOPS_TEST_MODELS") or str(ROOT / ".llmops" / "models")
    content["stack"]["models_dir"] = models
    return dict(content)


def _free_ports(*names: str) -> dict[str, int]:
    probes = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports
