"""The controller as a process: engines, experiments and MLflow; no trouble holds up another."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.health import probe
from deploy.migrations import upgrade
from gateway.database import Database, now, open_database
from gateway.prompt_versions import PromptVersionRow, put_version, set_label
from pipelines.champion import Services
from pipelines.mlflow_api import MLflowAPI
from pipelines.promotion import Promotion, Rollback, promote, rollback
from pipelines.prompt_registry import PromptRegistry
from pipelines.rollout import Replicas
from pipelines.tables import ExperimentRow
from prompts.prompt import Prompt
from tests.gateway_process import ROOT, configuration, free_port
from tests.pipelines.lifecycle import ALIAS, Traffic, adapter_name, begin, seed_version, state_of
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.scripted_engine import ScriptedEngine

WITHIN = 15.0


class ControllerProcess:
    """`python -m pipelines.controller` on a home of its own, in front of two replicas."""

    def __init__(self, home: Path, engines: list[ScriptedEngine]):
        self.home = home
        self.database_url = f"sqlite:///{home / 'state.db'}"
        self.engines = engines
        self.process: subprocess.Popen[bytes] | None = None
        home.mkdir()
        upgrade(self.database_url)
        self.configure(f"http://127.0.0.1:{free_port()}")

    def configure(self, tracking_uri: str) -> None:
        """Write the configuration; `tracking_uri` is MLflow's."""
        urls = [engine.url for engine in self.engines]
        given = configuration(
            urls[0],
            upstreams={"engine": {"url": urls[0], "engine": "vllm", "replicas": urls}},
            models={ALIAS: {"upstream": "engine", "model": "base-model"}},
            mlflow={"tracking_uri": tracking_uri},
        )
        fresh = self.home / "fresh.yaml"
        fresh.write_text(yaml.safe_dump(given))
        fresh.rename(self.home / "gateway.yaml")

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", "pipelines.controller")

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "LLMOPS_HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def start(self) -> None:
        with (self.home / "output").open("ab") as output:
            self.process = subprocess.Popen(
                self.command, env=self.environ, stdout=output, stderr=output
            )

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(5)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        return (self.home / "output").read_text()


@pytest.fixture
async def engines() -> AsyncIterator[list[ScriptedEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedEngine()) for _ in range(2)]


@pytest.fixture
async def controller(
    tmp_path: Path, engines: list[ScriptedEngine]
) -> AsyncIterator[ControllerProcess]:
    process = ControllerProcess(tmp_path / "home", engines)
    yield process
    process.close()


@pytest.fixture
def database(controller: ControllerProcess) -> Iterator[Database]:
    opened = open_database(controller.database_url)
    yield opened
    opened.close()


@pytest.fixture
def services(database: Database, engines: list[ScriptedEngine]) -> Services:
    for version in ("1", "2"):
        seed_version(database, version)
    return Services(database, Replicas([engine.url for engine in engines]))


async def until(true: Callable[[], Any], what: str) -> None:
    """Wait until it is true; the engines live on this event loop, so nothing here may block."""
    deadline = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < deadline, f"not within {WITHIN} s: {what}"
        await asyncio.sleep(0.05)


async def promoted(services: Services, version: str) -> None:
    await promote(services, Promotion(ALIAS, ALIAS, version, "anna", "it is better"))


async def test_it_decides_and_keeps_adapters_with_mlflow_away(
    controller, database, services, engines
):
    await promoted(services, "1")
    experiment = await begin(services, "2")
    controller.start()
    await engines[1].restart()
    both = {adapter_name("1"), adapter_name("2")}
    await until(lambda: set(engines[1].adapters) == both, "what an engine forgot is loaded again")

    traffic = Traffic(controller.home, database)
    traffic.users(experiment, 100, {"champion": 0.1, "challenger": 0.9})
    await until(lambda: state_of(database).experiments[0].state != "running", "a decision")
    after = state_of(database)
    assert after.experiments[0].state == "promoted"
    assert after.arms() == {"champion": adapter_name("2")}
    assert [one.state for one in after.promotions] == ["moving", "moving"]
    assert set(engines[0].adapters) == both  # the one before stays, for a rollback

    alive = (controller.home / "run" / "controller.alive").as_uri()
    assert probe(alive) is None
    began = time.monotonic()
    assert controller.stop() == 0
    assert time.monotonic() - began < 2
    said = controller.output()
    assert said.count("ends promoted: the candidate is better") == 1
    assert said.count("the model registry is away") == 1
    assert "Traceback" not in said


async def test_mlflow_is_told_when_it_is_back(
    controller, database, services, mlflow_server: MLflowServer
):
    await promoted(services, "1")
    controller.start()
    await until(lambda: "registry is away" in controller.output(), "MLflow is missed")
    api = MLflowAPI(mlflow_server.url, seconds=10)
    api.post("registered-models/create", {"name": ALIAS})
    api.post("model-versions/create", {"name": ALIAS, "source": "s3://nowhere/adapter"})
    controller.configure(mlflow_server.url)
    await until(lambda: state_of(database).promotions[0].state == "done", "the alias follows")
    model = api.get("registered-models/get", name=ALIAS)["registered_model"]
    assert [(one["alias"], one["version"]) for one in model["aliases"]] == [("champion", "1")]
    assert "is in force" in controller.output()


async def test_mlflow_is_told_of_prompts_labels(controller, database, mlflow_server: MLflowServer):
    registry = PromptRegistry(mlflow_server.url, seconds=10)
    given = Prompt.model_validate({"name": "controlled", "template": "x", "model": "m"})
    row = PromptVersionRow(
        name=given.name, version=registry.put(given, {}), content_hash=given.content_hash,
        content=given.content, path="controlled.yaml", created_at=now(),
    )  # fmt: skip
    with database.transaction() as session:
        put_version(session, row)
        set_label(session, given.name, "production", row.version)
    controller.start()
    await until(
        lambda: "prompt labels: the model registry is away" in controller.output(), "missed"
    )
    assert registry.aliases(given.name) == {}
    controller.configure(mlflow_server.url)
    told = "prompt controlled: MLflow's aliases: production 1"
    await until(lambda: told in controller.output(), "it is told")
    assert registry.aliases(given.name) == {"production": "1"}


async def test_a_broken_experiment_does_not_hold_up_another(
    controller, database, services, engines
):
    with database.transaction() as session:
        broken = ExperimentRow(
            experiment_id="0192f0c1-0000-7000-8000-000000000000",
            alias="another",
            name="another",
            state="running",
            arms=[],
            plan={"metric": 7},
            started_at=now(),
        )
        session.add(broken)
    experiment = await begin(services, "1")
    Traffic(controller.home, database).users(experiment, 100, {"champion": 0.9, "challenger": 0.1})
    engines[0].refusal = (500, "out of memory")
    controller.start()
    await until(
        lambda: state_of(database).experiments[-1].state == "rolled_back", "the other is decided"
    )
    await until(lambda: "metric" in controller.output(), "the trouble is told")
    assert state_of(database).experiments[0].state == "running"


async def test_it_ends_soon_though_an_engine_hangs(controller, database, services, engines):
    await promoted(services, "1")
    engines[0].silent = True
    controller.start()
    asked = len(engines[0].calls)
    await until(lambda: len(engines[0].calls) > asked, "the engine is asked")
    began = time.monotonic()
    assert controller.stop() == 0
    assert time.monotonic() - began < 2


async def test_an_experiment_ends_at_its_hours_without_any_feedback(controller, database, services):
    experiment = await begin(services, "1")
    Traffic(controller.home, database).request(experiment, "ann")
    with database.transaction() as session:
        row = session.get_one(ExperimentRow, experiment.experiment_id)
        row.started_at = now() - timedelta(hours=200)
    controller.start()
    await until(lambda: state_of(database).experiments[0].state == "held", "it ends")
    assert "0 of 1 users gave feedback" in str(state_of(database).experiments[0].message)
    assert state_of(database).arms() == {"champion": None}


async def test_one_for_a_home(controller):
    controller.start()
    alive = controller.home / "run" / "controller.alive"
    await until(alive.exists, "it lives")
    second = subprocess.run(
        controller.command, env=controller.environ, capture_output=True, text=True, timeout=20
    )
    assert second.returncode == 1
    assert "a controller runs already" in second.stderr


async def test_a_rolled_back_champion_is_not_unloaded_at_once(
    controller, database, services, engines
):
    await promoted(services, "1")
    controller.start()
    await rollback(services, Rollback(ALIAS, "ben", "nonsense"))
    await until((controller.home / "run" / "controller.alive").exists, "it lives")
    assert set(engines[0].adapters) == {adapter_name("1")}  # requests may be under way
    assert state_of(database).arms() == {"champion": None}


def test_it_starts_light():
    heavy = "{'mlflow', 'torch', 'transformers', 'peft', 'kfp', 'dvc', 'litellm', 'feast'}"
    program = f"import sys, pipelines.controller; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
