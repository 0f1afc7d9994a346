"""A home where real flights go through the train pipeline in seconds: some weeks of 2013, thinned
out, a small search, a model server that takes every version, and a real MLflow."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.migrations import upgrade
from gateway.settings import load_settings
from pipelines.installation import Installation, open_installation
from pipelines.passes import Outcome, run_pass
from pipelines.runs import latest
from pipelines.spec import load_spec
from pipelines.tables import RunRow
from tests.gateway_process import ROOT, configuration
from tests.pipelines.backstage import Backstage
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.scripted_model_server import ScriptedModelServer

NAME = "flight-test"
SPEC: dict[str, Any] = {
    "name": NAME,
    "kind": "tabular",
    "alias": NAME,
    "dataset": {
        "source": "flights", "service": "arrival_delay", "label": "late", "since": "2013-01-01",
        "until": "2013-02-15", "test_days": 15, "sample": 0.2, "minimum": 500,
    },
    "training": {"candidates": ["histogram"], "search": 1},
    "evaluation": {"slices": ["origin"], "slice_rows": 200, "timed_rows": 5, "threshold": 0.3},
    "gate": [
        {"metric": "auc", "margin": 0.01, "minimum_n": 1000},
        {"metric": "leak_auc", "direction": "decrease", "kind": "non_inferiority", "margin": 0.25,
         "minimum_n": 1000},
    ],
    "experiment": {"metric": "late", "loss": "brier", "minimum_users": 2, "maximum_users": 10},
}  # fmt: skip


class TabularHome:
    """A home of the model `flight-test`, which `server` serves."""

    def __init__(self, folder: Path, server: ScriptedModelServer, tracking_uri: str):
        self.folder, self.server, self.tracking_uri = folder, server, tracking_uri
        self.settings = load_settings({"LLMOPS_HOME": str(folder), "PYTHONPATH": str(ROOT)})
        upgrade(self.settings.database_url)

    @contextmanager
    def open(self) -> Iterator[Installation]:
        with open_installation(self.settings) as installation:
            yield installation

    def spec(self, **changes: Any) -> Path:
        """The spec in a file; a section of `changes` is put over its own."""
        given = dict(SPEC)
        for name, value in changes.items():
            given[name] = {**SPEC[name], **value} if isinstance(value, dict) else value
        path = self.folder / "spec.yaml"
        path.write_text(yaml.safe_dump(given))
        return path

    def run(self, **changes: Any) -> Outcome:
        """One pass."""
        with self.open() as installation:
            return run_pass(installation, load_spec(self.spec(**changes)), lambda *_: None)

    def mlflow_run(self) -> None:
        """The same as `mlflow run` does it."""
        command = [
            sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train-tabular",
            "--env-manager", "local", "-P", f"spec={self.spec()}",
        ]  # fmt: skip
        own = {
            **self.settings.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
        }
        environ = {**os.environ, **own}
        done = subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def last(self) -> RunRow:
        """What the newest pass has left in the state database."""
        with self.open() as installation:
            return latest(installation.database, NAME)[0]


@contextmanager
def tabular_home(folder: Path, backstage: Backstage, mlflow: MLflowServer) -> Iterator[TabularHome]:
    """A home in `folder`, with a model server of its own."""
    folder.mkdir()
    server = ScriptedModelServer()
    backstage.run(server.come_back())
    given = configuration(
        server.url,
        upstreams={"kserve": {"kind": "kserve", "url": server.url}},
        models={NAME: {"upstream": "kserve"}},
        mlflow={"tracking_uri": mlflow.url},
        feedback={"metrics": {"late": {"type": "boolean", "level": "request"}}},
    )
    (folder / "gateway.yaml").write_text(yaml.safe_dump(given))
    try:
        yield TabularHome(folder, server, mlflow.url)
    finally:
        backstage.run(server.go_away())
