"""Trainings of the tiny model, for tests: what to train, how it is watched, what it leaves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import rlhf.lora  # noqa: F401  # here, so that its import counts for no test's time
from rlhf.adapter import inspect
from rlhf.finetune import FinetuneConfig, FinetuneResult, Log, finetune

STEPS = 10  # 40 rows, 4 at a time
CONFIG = FinetuneConfig(batch_size=4, checkpoint_steps=2, learning_rate=5e-3, threads=1)


class Stopped(Exception):
    """Raised by a log, to end a training in the middle."""


@dataclass(frozen=True)
class Training:
    """What to train."""

    config: FinetuneConfig
    base: Path
    train: Path
    validation: Path | None
    out: Path

    def run(self, log: Log = lambda *_: None) -> FinetuneResult:
        return finetune(self.config, self.base, self.train, self.validation, self.out, log)


@dataclass(frozen=True)
class Material:
    """What trainings are made from."""

    base: Path
    train: Path
    validation: Path

    def training(self, out: Path, config: FinetuneConfig = CONFIG) -> Training:
        return Training(config, self.base, self.train, self.validation, out)


@dataclass
class Watched:
    """Notes what is logged; `stop_at` ends the training in that step."""

    stop_at: int | None = None
    steps: list[int] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)
        self.metrics.append(metrics)
        if step == self.stop_at:
            raise Stopped


def left(training: Training) -> list[str]:
    """What lies beside the adapter, with it."""
    return sorted(one.name for one in training.out.parent.iterdir())


def digest(result: FinetuneResult) -> str:
    return inspect(result.adapter).digest


def stopped(training: Training, step: int) -> Watched:
    log = Watched(stop_at=step)
    with pytest.raises(Stopped):
        training.run(log)
    return log
