"""Texts of many requests, computed together in a thread: in small batches, with fair turns.

A request of two thousand texts takes its turn a few texts at a time, so that a request of one
waits for one batch and not for all of them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from gateway.embedding_vector import Embedding
from gateway.errors import Unavailable

BATCH_TEXTS = 32
BATCH_CHARACTERS = 8192
TURN_TEXTS = 8
WAITING_TEXTS = 16384

Compute = Callable[[list[str]], list[Embedding]]


@dataclass(slots=True)
class _Job:
    texts: list[str]
    answers: list[Embedding]
    done: asyncio.Future[list[Embedding]]
    given: int = 0

    @property
    def left(self) -> int:
        return len(self.texts) - self.given


class FairBatches:
    """Runs `compute`, one batch at a time, in a thread of its own.

    Attributes:
        reads: characters of a text that `compute` looks at, at most; more cost it nothing.
    """

    def __init__(self, compute: Compute, *, reads: int) -> None:
        self._compute = compute
        self._reads = reads
        self._jobs: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, "embedding-model")
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Texts that no batch has taken yet."""
        return sum(job.left for job in self._jobs)

    async def embed(self, texts: list[str]) -> list[Embedding]:
        """The embeddings in the order of the texts. Raises Unavailable if too many wait."""
        if self.waiting + len(texts) > WAITING_TEXTS:
            raise Unavailable("Too many texts wait to be embedded; try again soon.")
        job = _Job(texts, [], asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await job.done

    async def close(self) -> None:
        """End the thread after the batch it is at."""
        if self._runner is not None:
            self._runner.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._jobs:
            turns = self._next_batch()
            texts = [text for _, turn in turns for text in turn]
            batch = loop.run_in_executor(self._thread, self._compute, texts)
            await asyncio.wait([batch])
            error = batch.exception()
            computed = iter([] if error else batch.result())
            for job, turn in turns:
                job.answers.extend(islice(computed, len(turn)))
                if job.done.done():
                    continue
                if error:
                    job.done.set_exception(error)
                elif len(job.answers) == len(job.texts):
                    job.done.set_result(job.answers)
            self._jobs = deque(job for job in self._jobs if not job.done.done())

    def _next_batch(self) -> list[tuple[_Job, list[str]]]:
        """Turns of a few texts from each job, round and round, until the batch is full."""
        turns: list[tuple[_Job, list[str]]] = []
        texts = characters = 0
        while self._jobs and texts < BATCH_TEXTS and characters < BATCH_CHARACTERS:
            job = self._jobs.popleft()
            turn: list[str] = []
            while job.left and len(turn) < TURN_TEXTS and characters < BATCH_CHARACTERS:
                turn.append(job.texts[job.given])
                characters += min(len(turn[-1]), self._reads)
                job.given += 1
            texts += len(turn)
            turns.append((job, turn))
            if job.left:
                self._jobs.append(job)
        return turns
