"""What the tests of this folder share: the tiny model, and an adapter that was trained on it."""

import gc
from collections.abc import Iterator

import pytest

from rlhf.finetune import FinetuneConfig, FinetuneResult
from tests.rlhf.tiny_model import write_rows, write_tiny_model
from tests.rlhf.trainings import Material, Training


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    return Material(
        base=write_tiny_model(folder / "tiny"),
        train=write_rows(folder / "train.jsonl", 40),
        validation=write_rows(folder / "validation.jsonl", 10, first=100),
    )


@pytest.fixture(scope="session")
def trained(material: Material, tmp_path_factory) -> FinetuneResult:
    """One in one go; its adapter is for reading and copying."""
    config = FinetuneConfig(learning_rate=1e-2, epochs=6, threads=1)
    return material.training(tmp_path_factory.mktemp("trained") / "adapter", config).run()


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Each training ends with a garbage collection; what is here already is left out of it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def training(material: Material, tmp_path, quick_collections) -> Training:
    return material.training(tmp_path / "adapter")


@pytest.fixture(scope="session")
def in_one_go(material: Material, tmp_path_factory) -> FinetuneResult:
    """What `training` comes to."""
    return material.training(tmp_path_factory.mktemp("one-go") / "adapter").run()
