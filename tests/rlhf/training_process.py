"""A training in a process of its own, that is killed: from outside, or by itself at a file's name.

Processes are forked from one that has the heavy libraries imported already.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.rlhf.trainings import Training

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["rlhf.lora", "transformers.models.llama.modeling_llama", "tests.rlhf.training_process"]
)
ANSWER_SECONDS = 60
# What changes names and files; weights are written beside Python's sight, under names that are.
FILE_EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"})


class TrainingProcess:
    """`messages` gives the steps as they come, at the end the result; none after a kill."""

    def __init__(self, training: Training, dies_at_event: int | None = None):
        self._mine, theirs = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=_train, args=(training, theirs, dies_at_event))
        self._process.start()
        theirs.close()

    def messages(self) -> Iterator[Any]:
        while True:
            try:
                assert self._mine.poll(ANSWER_SECONDS), "the training hangs"
                yield self._mine.recv()
            except EOFError:
                self._process.join()
                return

    def kill(self) -> None:
        self._process.kill()


def _train(training: Training, parent: Any, dies_at_event: int | None) -> None:
    if dies_at_event is not None:
        _die_at(dies_at_event, training.out)
    parent.send(training.run(lambda step, metrics: parent.send(step)))


def _die_at(number: int, out: Path) -> None:
    """Have a SIGKILL come just before the `number`th change of a file beside `out` or in it."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and out.name in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
