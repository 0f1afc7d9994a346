"""What a pass of the tabular pipeline takes, as a person starts it: `llmops train tabular`, with a
real MLflow, KServe model server and Redis, each stage a process of its own.

First the flights of January, then the same again with nothing changed, then all of 2013. Memory is
the most that command, DVC and stages held together at any moment.

python -m tests.bench.tabular
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.migrations import upgrade
from gateway.settings import Settings, load_settings
from pipelines.installation import open_installation
from pipelines.runs import latest
from pipelines.spec import load_spec
from tests.bench.children import Child
from tests.embedding_stack import RedisProcess
from tests.gateway_process import ROOT, configuration, free_port
from tests.pipelines.mlflow_server import MLflowServer
from tests.tabular_home import ModelServerProcess

NAME = "flight-delay"
JANUARY: dict[str, Any] = {"until": "2013-02-01", "test_days": 12}
YEAR: dict[str, Any] = {"until": "2014-01-01", "test_days": 21}
MONTH_SECONDS, AGAIN_SECONDS, MOST_MB = 120.0, 30.0, 4096.0
LONGEST = 900.0  # seconds
GATED = (0, 100)  # exit codes: registered, or not let through


@dataclass(frozen=True)
class Taken:
    """What one pass took. `stages`: seconds by stage."""

    seconds: float
    mb: float
    stages: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {spent:.1f}" for name, spent in self.stages.items())
        return f"{self.seconds:6.1f} s, {self.mb:,.0f} MB ({parts})"


@contextmanager
def home(folder: Path) -> Iterator[Settings]:
    """A home in `folder` with everything that a pass asks, running."""
    port, mlflow = free_port(), MLflowServer(folder)
    settings = load_settings({"LLMOPS_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)})
    settings.home.mkdir()
    with RedisProcess(folder) as redis:
        given = configuration(
            "http://127.0.0.1:9/v1",
            upstreams={"kserve": {"kind": "kserve", "url": f"http://127.0.0.1:{port}/v2"}},
            models={NAME: {"upstream": "kserve"}},
            mlflow={"tracking_uri": mlflow.url},
            model_server={"port": port, "redis_url": redis.url},
            feedback={"metrics": {"late": {"type": "boolean", "level": "request"}}},
        )
        (settings.home / "gateway.yaml").write_text(yaml.safe_dump(given))
        upgrade(settings.database_url)
        server = ModelServerProcess(dict(settings.environ), port)
        try:
            mlflow.start()
            server.start()
            yield settings
        finally:
            server.kill()
            mlflow.stop()


def taken(settings: Settings, folder: Path, dataset: dict[str, Any]) -> Taken:
    """One pass over the packaged spec with this period."""
    given = yaml.safe_load(load_spec(Path(NAME)).text())
    spec = folder / f"{NAME}.yaml"
    spec.write_text(yaml.safe_dump(given | {"dataset": given["dataset"] | dataset}))
    began, most = time.monotonic(), 0.0
    command = [sys.executable, "-m", "deploy.cli", "train", "tabular", str(spec)]
    child = Child("train", command, folder=folder, environment=settings.environ)
    while (code := child.exit_code()) is None:
        most = max(most, child.resident_mb())
        if time.monotonic() - began > LONGEST:
            child.stop()
            raise RuntimeError(f"a pass took more than {LONGEST:g} s:\n{child.tail()}")
        time.sleep(0.1)
    seconds = time.monotonic() - began
    if code not in GATED:
        raise RuntimeError(f"the pass ended with {code}:\n{child.tail()}")
    return Taken(seconds, most, stage_seconds(settings))


def stage_seconds(settings: Settings) -> dict[str, float]:
    """Of the newest pass, from its own account in MLflow."""
    with open_installation(settings) as installation:
        from mlflow import MlflowClient

        run = latest(installation.database, NAME)[0]
        client = MlflowClient(installation.tracking_uri())
        experiment = client.get_experiment_by_name(NAME)
        assert experiment is not None  # the pass made it
        wanted = f"tags.stage = 'pass' and tags.run_id = '{run.run_id}'"
        found = client.search_runs([experiment.experiment_id], wanted)[0].data.metrics
    order = ("preprocess", "features", "train", "evaluate", "gate", "register", "experiment")
    return {one: found[f"seconds/{one}"] for one in order if f"seconds/{one}" in found}


def main() -> int:
    """Measure and print; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tabular", description=__doc__)
    parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.2f} before")
    with tempfile.TemporaryDirectory() as name, home(Path(name)) as settings:
        january = taken(settings, Path(name), JANUARY)
        print(f"January        {january}", flush=True)
        again = taken(settings, Path(name), JANUARY)
        print(f"nothing changed{again}", flush=True)
        year = taken(settings, Path(name), YEAR)
        print(f"all of 2013    {year}")
    met = {
        f"January within {MONTH_SECONDS:g} s": january.seconds <= MONTH_SECONDS,
        f"again within {AGAIN_SECONDS:g} s": again.seconds <= AGAIN_SECONDS,
        f"2013 within {MOST_MB:,.0f} MB": year.mb <= MOST_MB,
    }
    for goal, held in met.items():
        print(f"{goal}: {'met' if held else 'MISSED'}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
