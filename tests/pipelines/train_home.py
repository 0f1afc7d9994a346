"""A home where the train pipeline goes its whole way in seconds: a tiny model, users who said what
is right, an engine that answers rightly where it is asked for an adapter, and a real MLflow behind
a door that can be shut."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from evals.cases import save_cases
from evals.records import Case
from gateway.settings import Settings, load_settings
from pipelines.installation import Installation, open_installation
from pipelines.passes import Outcome, Progress, run_pass
from pipelines.spec import Spec, load_spec
from tests.gateway_process import ROOT, configuration
from tests.pipelines.backstage import Backstage, Door
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.scripted_engine import BASE, ScriptedEngine
from tests.rlhf.feedback_log import FeedbackLog, question
from tests.rlhf.tiny_model import write_tiny_model

NAME = "cities"  # of the model and of the alias
ENGINE_KEY = "the engine's key"
CITIES = ("oslo", "rome", "paris", "lima", "quito")
SPEC: dict[str, Any] = {
    "name": NAME,
    "kind": "llm",
    "alias": NAME,
    "dataset": {"tenant": "acme", "minimum": 8, "validation_share": 0.2},
    "training": {
        "base_model": "tiny", "rank": 4, "alpha": 8, "learning_rate": 0.01, "epochs": 8,
        "batch_size": 4, "checkpoint_steps": 2, "threads": 1,
    },
    "evaluation": {
        "cases": "cases.jsonl",
        "scorers": ["exact_match"],
        "parameters": {"max_tokens": 16},
        "concurrency": 24,
    },
    "gate": [{"metric": "exact_match", "margin": 0.05, "minimum_n": 20}],
    "experiment": {"metric": "helpful", "minimum_users": 2, "maximum_users": 10},
}  # fmt: skip
STEPS = 32
WRONG = "Sure! Here you are."


def right(city: str) -> str:
    return f'{{"city": "{city}"}}'


def asked(name: str, city: str) -> str:
    return f"{name} lives in {city}."


def held_out() -> list[Case]:
    """The cases of the tiny task."""
    return [
        Case(f"case-{number}", tuple(question(asked(f"no. {number}", city))), {"city": city}, {})
        for number in range(24)
        for city in [CITIES[number % len(CITIES)]]
    ]


def teach(log: FeedbackLog, users: int = 5, each: int = 4, first: int = 0) -> None:
    """Users who correct what they were answered."""
    for user in range(first, first + users):
        for number in range(each):
            city = CITIES[(user + number) % len(CITIES)]
            said = log.ask(asked(f"user {user}, {number}", city), WRONG, user=f"u{user}",
                           model=NAME)  # fmt: skip
            log.show(said, {"city": city})
    log.write()


def answer(body: dict[str, Any]) -> str:
    """Right from an adapter, chatter from the base model."""
    if body["model"] == BASE:
        return WRONG
    return right(body["messages"][-1]["content"].split()[-1].rstrip("."))


class TrainHome:
    """A home of the model `cities`. `door` leads to MLflow, `engine` answers the alias `cities`.

    Attributes:
        first: the command that trained it, once it has.
    """

    def __init__(self, folder: Path, backstage: Backstage, engine: ScriptedEngine, door: Door):
        self.folder, self.backstage, self.engine, self.door = folder, backstage, engine, door
        self.environ = {
            **os.environ,
            "LLMOPS_HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "ENGINE_KEY": ENGINE_KEY,
        }
        self.spec_path = folder / "cities.yaml"
        self.first: subprocess.CompletedProcess[str] | None = None
        save_cases(folder / "cases.jsonl", held_out())
        self.configure()
        self.spec()

    @property
    def settings(self) -> Settings:
        return load_settings(self.environ)

    @property
    def work(self) -> Path:
        """Where a training under way keeps what it goes on from."""
        return self.folder / "lifecycle" / NAME / "work"

    def shut(self) -> None:
        """MLflow is away from now on."""
        self.backstage.run(self.door.close())

    def reopen(self) -> None:
        """MLflow is back."""
        self.backstage.run(self.door.open())

    def configure(self, **sections: Any) -> None:
        """Write the configuration; `sections` change it."""
        url = self.engine.url
        engine = {"url": url, "engine": "vllm", "api_key_env": "ENGINE_KEY"}
        given = {
            "upstreams": {"engine": engine},
            "models": {NAME: {"upstream": "engine", "model": BASE}},
            "mlflow": {"tracking_uri": self.door.url},
        }
        whole = configuration(url, **(given | sections))
        (self.folder / "gateway.yaml").write_text(yaml.safe_dump(whole))

    def spec(self, **changes: Any) -> Spec:
        """Write the spec and load it; a section of `changes` is put over the keys of its own."""
        given = dict(SPEC)
        for name, value in changes.items():
            given[name] = {**SPEC[name], **value} if isinstance(value, dict) else value
        self.spec_path.write_text(yaml.safe_dump(given))
        return load_spec(self.spec_path)

    @contextmanager
    def open(self) -> Iterator[Installation]:
        with open_installation(self.settings) as installation:
            yield installation

    def run(
        self,
        show: Progress | None = None,
        *,
        fresh: bool = False,
        live: bool = False,
        **changes: Any,
    ) -> Outcome:
        """One pass in this process; `changes` are the spec's."""
        spec, quiet = self.spec(**changes), show or (lambda *_: None)
        with self.open() as installation:
            return run_pass(installation, spec, quiet, fresh=fresh, experiment=live)

    def command(self, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "deploy.cli", *arguments)

    def llmops(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command on this home."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=250,
        )

    def first_pass(self) -> None:
        """Train by the command."""
        self.first = self.llmops("train", "llm", str(self.spec_path), "--no-experiment")
        assert self.first.returncode == 0, self.first.stdout + self.first.stderr


def write_untrained(folder: Path) -> Path:
    """What homes are copies of: the tiny model, and a log with feedback."""
    folder.mkdir()
    write_tiny_model(folder / "models" / "tiny")
    log = FeedbackLog(folder)
    teach(log)
    log.database.close()
    return folder


@contextmanager
def train_home(
    source: Path, folder: Path, backstage: Backstage, server: MLflowServer
) -> Iterator[TrainHome]:
    """A copy of `source` in `folder`, with an engine and a door of its own."""
    shutil.copytree(source, folder)
    engine, door = ScriptedEngine(key=ENGINE_KEY), Door(server.port)
    engine.answer = answer
    backstage.run(door.open())
    backstage.run(engine.come_back())
    try:
        yield TrainHome(folder, backstage, engine, door)
    finally:
        backstage.run(engine.go_away())
        backstage.run(door.close())
