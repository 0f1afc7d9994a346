import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import pytest
import torch
from transformers.utils import logging as transformers_logging

from tests.rlhf.trainings import Stopped


@pytest.fixture
def settings_of_our_own() -> Iterator[None]:
    """Settings that no library would choose."""
    levels = {"transformers": 17, "peft": 23, "accelerate": 29}
    before = {name: logging.getLogger(name).level for name in levels}
    threads = torch.get_num_threads()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    torch.set_num_threads(threads + 1)
    yield
    torch.set_num_threads(threads)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def process() -> dict[str, Any]:
    """What a training could change in its process."""
    loggers = [logging.root, *map(logging.getLogger, ("transformers", "peft", "accelerate"))]
    return {
        "random": random.getstate(),
        "numpy": [str(one) for one in numpy.random.get_state()],
        "torch": torch.random.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": [(one.level, list(one.handlers), one.propagate) for one in loggers],
        "bars": transformers_logging.is_progress_bar_enabled(),
        "environment": dict(os.environ),
    }


@pytest.mark.parametrize(("stop_at", "bars"), [(None, True), (3, False)])
def test_the_process_is_left_as_it_was(training, capfd, settings_of_our_own, stop_at, bars):
    switch: Callable[[], None] = (
        transformers_logging.enable_progress_bar
        if bars
        else transformers_logging.disable_progress_bar
    )
    switch()
    inside = set()

    def log(step: int, metrics: Mapping[str, float]) -> None:
        inside.add(torch.get_num_threads())
        if step == stop_at:
            raise Stopped

    before = process()
    try:
        training.run(log)
    except Stopped:
        assert stop_at
    after = process()
    transformers_logging.enable_progress_bar()
    assert after == before
    assert inside == {1}
    assert capfd.readouterr() == ("", "")
