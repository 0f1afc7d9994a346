"""SIGKILL of a training at random moments: it goes on, and ends as if nothing had been.

`LLMOPS_TEST_SEED` replays the moments.
"""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.adapter import inspect, require_fit
from rlhf.finetune import FinetuneConfig, FinetuneResult
from tests.rlhf.training_process import TrainingProcess
from tests.rlhf.trainings import Material, Training, left

STEPS, EVERY = 40, 2  # 40 rows, 4 at a time, 4 times
CONFIG = FinetuneConfig(
    batch_size=4, epochs=4, checkpoint_steps=EVERY, learning_rate=5e-3, threads=1
)
SHORT = FinetuneConfig(batch_size=16, checkpoint_steps=1, learning_rate=5e-3, threads=1)
SHORT_EVENTS = 95  # about so many changes of files a training of three steps takes
KILLS = 3


@pytest.fixture
def draw() -> random.Random:
    seed = int(os.environ.get("LLMOPS_TEST_SEED") or time.time_ns() % 1_000_000)
    print(f"LLMOPS_TEST_SEED={seed}")
    return random.Random(seed)


def training_in(folder: Path, config: FinetuneConfig, material: Material) -> Training:
    folder.mkdir()
    return material.training(folder / "adapter", config)


def finished(training: Training) -> tuple[list[int], FinetuneResult]:
    *steps, result = TrainingProcess(training).messages()
    return steps, result


def killed(training: Training, draw: random.Random) -> list[int]:
    """Start it, kill it some moments after it has done some steps; the steps that it did."""
    process = TrainingProcess(training)
    steps, enough, moments = [], draw.randint(1, 10), draw.uniform(0, 0.1)
    messages = process.messages()
    for step in messages:
        steps.append(step)
        if len(steps) == enough:
            break
    time.sleep(moments)
    process.kill()
    return [*steps, *messages]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_again_and_again_it_ends_as_in_one_go(material, tmp_path, draw):
    training = training_in(tmp_path / "killed", CONFIG, material)
    whole = training_in(tmp_path / "whole", CONFIG, material).run()
    done = 0
    for _ in range(KILLS):
        steps = killed(training, draw)
        assert not training.out.exists()
        if steps:
            assert steps[0] == (done + 1 if done else 0)
            done = max(done, _kept(training))
            assert done >= (steps[-1] - 1) // EVERY * EVERY
    steps, result = finished(training)
    assert steps == [*range(done + 1 if done else 0, STEPS + 1), STEPS]
    assert (result.resumed_from, result.steps) == (done or None, STEPS)
    assert inspect(result.adapter) == inspect(whole.adapter)
    for name in ("first_loss", "last_loss", "validation_loss"):
        assert getattr(result, name) == getattr(whole, name)
    assert left(training) == ["adapter"]


def _kept(training: Training) -> int:
    """The step of the last whole checkpoint: a seal is the last that is written."""
    folder = training.out.with_name("adapter.checkpoints")
    sealed = [one.parent.name for one in folder.glob("checkpoint-*/sealed.json")]
    return max((int(name.removeprefix("checkpoint-")) for name in sealed), default=0)


def moments(draw: random.Random) -> Iterator[int]:
    """Changes of files to die at: one in each part of a training."""
    for start in range(0, SHORT_EVENTS, 16):
        yield draw.randint(start + 1, start + 16)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_change_of_a_file(material, trained, tmp_path, draw):
    whole = inspect(training_in(tmp_path / "whole", SHORT, material).run().adapter)
    before = require_fit(trained.adapter, whole.base_digest, SHORT.rank)
    deaths = 0
    for number in moments(draw):
        training = training_in(tmp_path / str(number), SHORT, material)
        shutil.copytree(trained.adapter, training.out)
        messages = [*TrainingProcess(training, dies_at_event=number).messages()]
        deaths += not messages or not isinstance(messages[-1], FinetuneResult)
        away = not training.out.exists()  # between two names
        assert away or inspect(training.out).digest in (before.digest, whole.digest)
        finished(training)
        assert inspect(training.out) == whole, f"killed before change {number}"
        assert left(training) == ["adapter"]
    assert deaths >= 4
