"""Batches: answers in order, fair turns, errors where they belong, a bound on what waits."""

import asyncio
import struct
import threading
import time

import pytest

from gateway.embedding_batches import BATCH_TEXTS, WAITING_TEXTS, FairBatches
from gateway.embedding_vector import Embedding
from gateway.errors import Unavailable


class Model:
    """Embeds a number's text as that number; takes a millisecond a text; fails on `bad`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()

    def compute(self, texts: list[str]) -> list[Embedding]:
        self.batches.append(texts)
        self.threads.add(threading.get_ident())
        time.sleep(0.001 * len(texts))
        if "bad" in texts:
            raise RuntimeError("out of memory")
        return [Embedding(struct.pack("<f", float(text)), 1) for text in texts]


def numbers(embeddings: list[Embedding]) -> list[float]:
    return [struct.unpack("<f", embedding.vector)[0] for embedding in embeddings]


async def test_concurrent_requests_share_batches_and_keep_their_order():
    model = Model()
    batches = FairBatches(model.compute, reads=100)
    wanted = [[str(100 * job + i) for i in range(job + 1)] for job in range(20)]
    answers = await asyncio.gather(*(batches.embed(texts) for texts in wanted))
    for texts, answer in zip(wanted, answers, strict=True):
        assert numbers(answer) == [float(text) for text in texts]
    assert len(model.batches) < 20
    assert max(len(batch) for batch in model.batches) <= BATCH_TEXTS + 7
    assert threading.get_ident() not in model.threads
    await batches.close()


async def test_one_text_does_not_wait_for_a_thousand():
    model = Model()
    batches = FairBatches(model.compute, reads=100)
    many = asyncio.create_task(batches.embed([str(i) for i in range(1000)]))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    assert numbers(await batches.embed(["7"])) == [7]
    assert time.monotonic() - started < 0.5
    assert not many.done()
    assert numbers(await many) == [float(i) for i in range(1000)]
    await batches.close()


async def test_long_texts_make_small_batches():
    model = Model()
    batches = FairBatches(model.compute, reads=4000)
    long = "1" + " " * 5000
    assert numbers(await batches.embed([long] * 9)) == [1.0] * 9
    assert max(len(batch) for batch in model.batches) <= 3
    await batches.close()


async def test_a_failure_reaches_its_batch_and_no_later_one():
    model = Model()
    batches = FairBatches(model.compute, reads=100)
    with pytest.raises(RuntimeError, match="out of memory"):
        await batches.embed(["bad"])
    assert numbers(await batches.embed(["3"])) == [3]
    await batches.close()


async def test_too_many_are_refused():
    model = Model()
    batches = FairBatches(model.compute, reads=100)
    waiting = asyncio.create_task(batches.embed(["1"] * WAITING_TEXTS))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await batches.embed(["1"] * 100)
    waiting.cancel()
    await batches.close()
