"""Requests that wait for the same model are answered together.

A table of ten rows takes hardly longer than one of one row: looking up, building a frame and asking
a model cost by the call. One alone is answered at once; while a batch is being answered, the next
one gathers, so that a server that falls behind catches up.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

MOST = 64


class Batches:
    """Gathers requests for `answer`, which runs in `pool`, one batch after the other.

    `answer` gives for each request its answer, or the exception that is its own. If it breaks on
    several at once, each is asked for alone: the others need not suffer for one.
    """

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[Any]], pool: Executor):
        self._answer, self._pool = answer, pool
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, request: Any) -> Any:
        """The answer to one request; raises what is its own, or what broke its batch."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            answers = await self._answers([request for request, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                _settle(future, answer)
        self._task = None

    async def _answers(self, requests: Sequence[Any]) -> Sequence[Any]:
        answering = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, requests)
        outcome: Any = (await asyncio.gather(answering, return_exceptions=True))[0]
        if not isinstance(outcome, BaseException):
            answers: Sequence[Any] = outcome
            return answers
        if len(requests) == 1:
            return [outcome]
        return [answer for one in requests for answer in await self._answers([one])]


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # whoever waited for it has gone
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
