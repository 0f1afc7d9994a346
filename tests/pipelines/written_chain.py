"""Fixtures: one whole chain for a test module (named by its NAME), and a copy for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.lifecycle_rows import Chain, write_chain
from tests.pipelines.lineage_damage import copied
from tests.pipelines.mlflow_server import MLflowServer


@pytest.fixture(scope="module")
def mlflow(mlflow_server: MLflowServer) -> str:
    return mlflow_server.url


@pytest.fixture(scope="module")
def written(
    mlflow: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Chain]:
    """The first traffic is in the table, the rest in the spool."""
    home = tmp_path_factory.mktemp("chain")
    chain = write_chain(home, name=request.module.NAME, tracking_uri=mlflow, ship=True)
    yield chain
    chain.database.close()


@pytest.fixture
def chain(written: Chain, tmp_path: Path) -> Iterator[Chain]:
    copy = copied(written, tmp_path / "home")
    yield copy
    copy.database.close()
