"""A block in which the training libraries leave the process as they found it.

They print progress bars, warn, seed every random generator, and set the number of threads. Their
errors pass; everything else is put back at the end of the block.
"""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from transformers.utils import logging as transformers_logging

LOUD = ("transformers", "peft", "accelerate", "huggingface_hub")


@contextmanager
def undisturbed(threads: int | None) -> Iterator[None]:
    """Quiet, on `threads` threads (None: as many as now), and everything as before at the end."""
    bars = transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in LOUD}
    before = torch.get_num_threads()
    python, arrays = random.getstate(), numpy.random.get_state()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
            random.setstate(python)
            numpy.random.set_state(arrays)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
