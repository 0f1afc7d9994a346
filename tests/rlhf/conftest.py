"""What the tests of this folder share: the tiny model, and an adapter that was trained on it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.finetune import FinetuneConfig, FinetuneResult, finetune
from tests.rlhf.tiny_model import write_rows, write_tiny_model


@dataclass(frozen=True)
class Material:
    """What a training is made from."""

    base: Path
    train: Path
    validation: Path


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    return Material(
        base=write_tiny_model(folder / "tiny"),
        train=write_rows(folder / "train.jsonl", 40),
        validation=write_rows(folder / "validation.jsonl", 10, first=100),
    )


@pytest.fixture(scope="session")
def trained(material, tmp_path_factory) -> FinetuneResult:
    """One in one go; its adapter is for reading and copying."""
    config = FinetuneConfig(learning_rate=1e-2, epochs=6, threads=1)
    out = tmp_path_factory.mktemp("trained") / "adapter"
    return finetune(
        config, material.base, material.train, material.validation, out, lambda *_: None
    )
