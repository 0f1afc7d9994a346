"""The spool's writer: its invariants, with real files, locks and failing descriptors."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gateway.batches import is_sealed, segment_paths
from gateway.configuration import Log
from gateway.segment import Entry, Kind, read_segment
from gateway.spool import Spool, SpoolUnavailable
from tests.spooled_requests import file_size_limit, record

SMALL = Log(segment_bytes=4096, sync_seconds=0.01)


def entries(folder: Path) -> list[Entry]:
    return [
        item
        for path in segment_paths(folder)
        for item in read_segment(path)
        if isinstance(item, Entry)
    ]


def finals(folder: Path) -> list[str]:
    return [item.meta["request_id"] for item in entries(folder) if item.kind is Kind.FINAL]


@contextmanager
def unsyncable(descriptor: int) -> Iterator[None]:
    """fdatasync of it fails from here on: a pipe stands in its place, as after a device error."""
    reading, writing = os.pipe()
    kept = os.dup(descriptor)
    os.dup2(writing, descriptor)
    try:
        yield
    finally:
        for number in (reading, writing, kept):
            os.close(number)


async def running(spool: Spool) -> asyncio.Task[None]:
    return asyncio.create_task(spool.run())


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_a_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    one = record()
    spool.begin(one)
    spool.finish(one, b"\x00question", b"answer\xff")
    begun, ended = entries(tmp_path)
    assert (begun.kind, begun.meta["request_id"]) == (Kind.INTENT, one.request_id)
    assert (ended.request, ended.response) == (b"\x00question", b"answer\xff")
    assert ended.meta["cost_nano_usd"] == 7
    spool.close()


def test_a_segment_is_locked_until_its_writer_closes_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    spool.finish(record(), b"", b"")
    (path,) = segment_paths(tmp_path)
    assert not is_sealed(path)
    spool.close()
    assert is_sealed(path)


def test_an_empty_segment_is_removed_at_close(tmp_path: Path) -> None:
    Spool(tmp_path, SMALL).close()
    assert segment_paths(tmp_path) == []


async def test_open_intents_are_carried_into_the_next_segment(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    task = await running(spool)
    waiting = record()
    spool.begin(waiting)
    spool.finish(record(), b"x" * 5000, b"")
    await spool.synced()
    first, second = segment_paths(tmp_path)
    assert is_sealed(first)
    assert not is_sealed(second)
    assert [
        item.meta["request_id"] for item in read_segment(second) if isinstance(item, Entry)
    ] == [waiting.request_id]
    await stopped(task)
    spool.close()


async def test_a_segment_is_closed_by_age(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Log(segment_seconds=0.05, sync_seconds=0.01))
    task = await running(spool)
    spool.finish(record(), b"", b"")
    async with asyncio.timeout(5):
        while len(segment_paths(tmp_path)) < 2 or not is_sealed(segment_paths(tmp_path)[0]):
            await asyncio.sleep(0.02)
    await stopped(task)
    spool.close()


def test_a_write_that_does_not_fit_leaves_whole_records_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    kept = record()
    spool.finish(kept, b"a" * 100, b"")
    with file_size_limit(1500), pytest.raises(SpoolUnavailable):
        spool.finish(record(), b"b" * 3000, b"")
    with pytest.raises(SpoolUnavailable):
        spool.ensure_room()
    after = record()
    spool.finish(after, b"", b"")
    assert finals(tmp_path) == [kept.request_id, after.request_id]
    spool.close()


def test_a_full_spool_refuses_before_the_upstream_is_called(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Log(spool_bytes=65536))
    spool.ensure_room()
    spool.finish(record(), b"a" * 70_000, b"")
    with pytest.raises(SpoolUnavailable, match="full"):
        spool.ensure_room()
    spool.close()


async def test_a_failed_sync_is_told_and_its_records_are_written_anew(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Log(durability="sync"))
    task = await running(spool)
    first, second = record(), record()
    spool.finish(first, b"one", b"")
    await spool.synced()
    spool.finish(second, b"two", b"")
    with unsyncable(spool._current.descriptor), pytest.raises(SpoolUnavailable, match="synced"):
        await spool.synced()
    third = record()
    spool.finish(third, b"three", b"")
    await spool.synced()
    assert spool.failed_syncs == 1
    assert len(segment_paths(tmp_path)) == 2
    assert set(finals(tmp_path)) == {first.request_id, second.request_id, third.request_id}
    assert all(is_sealed(path) for path in segment_paths(tmp_path)[:1])
    await stopped(task)
    spool.close()


async def test_a_rotation_during_a_sync_loses_and_fails_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Log(durability="sync", segment_bytes=4096))
    task = await running(spool)
    written = []

    async def write() -> None:
        for _ in range(40):
            one = record()
            spool.finish(one, b"x" * 1500, b"")
            written.append(one.request_id)
            await spool.synced()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(write())
    await stopped(task)
    spool.close()
    assert spool.failed_syncs == 0
    assert sorted(finals(tmp_path)) == sorted(written)
    assert all(is_sealed(path) for path in segment_paths(tmp_path))


async def test_a_part_is_synced_and_closed_with_its_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Log(durability="sync"))
    task = await running(spool)
    one = record(response_part="p")
    part = spool.open_part(one.request_id)
    part.append(b"long ")
    part.append(b"answer")
    part.close()
    spool.finish(one, b"", b"")
    await spool.synced()
    assert spool.part_path(one.request_id).read_bytes() == b"long answer"
    await stopped(task)
    spool.close()
