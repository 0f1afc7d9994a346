"""Requests that wait are answered together, each with what is its own."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.prediction_batch import MOST, Batches


class Doubler:
    """Doubles numbers slowly; below zero is refused, a thousand breaks the batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.sizes.append(len(numbers))
        time.sleep(0.02)
        if 1000 in numbers:
            raise RuntimeError("it broke")
        return [ValueError(str(one)) if one < 0 else one * 2 for one in numbers]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def batches(doubler: Doubler) -> Batches:
    return Batches(doubler, ThreadPoolExecutor(1))


async def test_one_alone_is_answered_and_many_share(batches, doubler):
    assert await batches.ask(4) == 8
    count = MOST + 40
    answers = await asyncio.gather(*(batches.ask(one) for one in range(count)))
    assert answers == [one * 2 for one in range(count)]
    assert doubler.sizes == [1, MOST, 40]
    assert await batches.ask(5) == 10


async def test_what_is_wrong_with_one_is_its_own(batches):
    answers = await asyncio.gather(
        *(batches.ask(one) for one in (1, -2, 3)), return_exceptions=True
    )
    assert (answers[0], str(answers[1]), answers[2]) == (2, "-2", 6)


async def test_one_that_breaks_its_batch_fails_alone(batches):
    asked = [batches.ask(one) for one in (1, 1000, 2)]
    one, broken, other = await asyncio.gather(*asked, return_exceptions=True)
    assert (one, str(broken), other) == (2, "it broke", 4)
    assert await batches.ask(2) == 4


async def test_whoever_goes_away_changes_nothing_for_the_others(batches):
    first, second = (asyncio.create_task(batches.ask(one)) for one in (1, 2))
    await asyncio.sleep(0.005)
    first.cancel()
    assert await second == 4
    with pytest.raises(asyncio.CancelledError):
        await first
