"""What tests of several folders share: what takes long to make, once a run, when it is wanted."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.pipelines.backstage import Backstage
    from tests.pipelines.mlflow_server import MLflowServer
    from tests.pipelines.train_home import TrainHome


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[MLflowServer]":
    """The one MLflow of the run; tests choose names of their own in it."""
    from tests.pipelines.mlflow_server import MLflowServer

    server = MLflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def backstage() -> "Iterator[Backstage]":
    """A thread for servers beside tests that block."""
    from tests.pipelines.backstage import Backstage

    with Backstage() as running:
        yield running


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home's folder with the tiny model and a log with feedback, to be copied."""
    from tests.pipelines.train_home import write_untrained

    return write_untrained(tmp_path_factory.mktemp("untrained") / "home")


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    untrained: Path,
    backstage: "Backstage",
    mlflow_server: "MLflowServer",
) -> "Iterator[TrainHome]":
    """A home after `llmops train llm`, to be read, or copied where something is changed."""
    from tests.pipelines.train_home import train_home

    folder = tmp_path_factory.mktemp("trained") / "home"
    with train_home(untrained, folder, backstage, mlflow_server) as home:
        home.first_pass()
        yield home


@pytest.fixture
def blank(
    untrained: Path, tmp_path: Path, backstage: "Backstage", mlflow_server: "MLflowServer"
) -> "Iterator[TrainHome]":
    """A home of the test's own in which nothing was trained yet."""
    from tests.pipelines.train_home import train_home

    with train_home(untrained, tmp_path / "home", backstage, mlflow_server) as home:
        yield home


@pytest.fixture
def copied(
    trained: "TrainHome", tmp_path: Path, backstage: "Backstage", mlflow_server: "MLflowServer"
) -> "Iterator[TrainHome]":
    """A copy of the trained home for a test to change: whatever comes, DVC need not train."""
    from tests.pipelines.train_home import train_home

    with train_home(trained.folder, tmp_path / "home", backstage, mlflow_server) as home:
        yield home
