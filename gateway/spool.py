"""The spool: where a worker writes what happened, before the last byte of the answer goes out.

Invariants:
- A finished request's record is in the file (`write()`) before its client can know that it is
  finished; it is synced to the disk at most `sync_seconds` later, or before (`durability: sync`).
- Before an upstream is called there is an intent record. An intent without an end in a dead
  writer's *last* segment is a request that its death interrupted: on rotation the open intents
  are carried into the new segment, which appears under its name with them inside.
- The current segment is locked (flock) while its writer lives. A segment that can be locked is
  sealed: nothing is ever added to it.
- After a failed fdatasync a segment is never synced again: what it may have lost is written anew
  to the next one (PostgreSQL learned why in 2018: the kernel drops dirty pages after the error).
- A short or failed write is cut off again, so that a segment holds whole records only.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson
import uuid_utils

from gateway.configuration import Log
from gateway.records import RequestRecord
from gateway.segment import MAGIC, SUFFIX, Kind, encode, segment_name

PARTS = "parts"
USAGE_SCAN_SECONDS = 1.0
_INTENT_FIELDS = [
    "request_id",
    "ts",
    "endpoint",
    "tenant",
    "team",
    "key_id",
    "user",
    "episode_id",
    "model",
    "target",
    "stream",
    "config_hash",
]
_log = logging.getLogger(__name__)


class SpoolUnavailable(OSError):
    """The spool cannot take a record: its cap is reached, or the disk is full or broken."""


class Spool:
    """One worker's writer. Its methods are called from one event loop; `append` never waits."""

    def __init__(self, folder: Path, log: Log, *, clock: Callable[[], float] = time.monotonic):
        self.folder = folder
        self.log = log
        self.failed_syncs = 0
        self._clock = clock
        self._writer = str(uuid_utils.uuid7())
        self._sequence = 0
        self._open_intents: dict[str, list[bytes]] = {}
        self._unsynced: list[list[bytes]] = []
        self._unsynced_parts: list[int] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._dirty = asyncio.Event()
        self._others_bytes = 0
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        self._descriptor, self._size = self._new_segment()
        self._synced_size = self._size
        self._finals = 0
        self._started = self._clock()
        self._full = self._scan()

    def ensure_room(self) -> None:
        """Raise SpoolUnavailable if a request that starts now might not be logged."""
        if self._full or self._others_bytes + self._size >= self.log.spool_bytes:
            raise SpoolUnavailable("the request log's spool is full")

    def begin(self, record: RequestRecord) -> None:
        """Write the intent: this request is about to reach its upstream."""
        meta = orjson.dumps({name: getattr(record, name) for name in _INTENT_FIELDS})
        buffers = encode(Kind.INTENT, meta)
        self._append(buffers)
        self._open_intents[record.request_id] = buffers

    def finish(self, record: RequestRecord, request: bytes, response: bytes) -> None:
        """Write how the request ended, with both bodies. Also without a `begin` before."""
        self._append(encode(Kind.FINAL, orjson.dumps(record), request, response))
        self._open_intents.pop(record.request_id, None)
        self._finals += 1
        if self._size >= self.log.segment_bytes:
            self._rotate()

    def open_part(self, request_id: str) -> "Part":
        """A file of its own for a response that is too long to hold in memory."""
        return Part(self.part_path(request_id), self._unsynced_parts)

    def part_path(self, name: str) -> Path:
        """Where a part file is."""
        return self.folder / PARTS / name

    async def synced(self) -> None:
        """Return when everything appended so far is on the disk (`durability: sync`)."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._dirty.set()
        await waiter

    async def run(self) -> None:
        """Sync, rotate by age and watch the spool's size, until cancelled."""
        scanned = self._clock()
        pause = 0 if self.log.durability == "sync" else self.log.sync_seconds
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(USAGE_SCAN_SECONDS / 2):
                    await self._dirty.wait()
            if self._dirty.is_set():
                await asyncio.sleep(pause)
                await self._sync()
            now = self._clock()
            if self._finals and now - self._started >= self.log.segment_seconds:
                self._rotate()
            if now - scanned >= USAGE_SCAN_SECONDS:
                scanned, self._full = now, self._scan()

    def close(self) -> None:
        """Seal the current segment; an empty one is removed. Later appends fail."""
        path = self._path(self._sequence)
        os.fdatasync(self._descriptor)
        if self._size == len(MAGIC):
            path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def _append(self, buffers: list[bytes]) -> None:
        wanted = sum(map(len, buffers))
        try:
            written = os.writev(self._descriptor, buffers)
        except OSError as error:
            self._cut_back()
            raise SpoolUnavailable(f"the spool cannot be written: {error.strerror}") from error
        if written != wanted:
            self._cut_back()
            raise SpoolUnavailable("the disk of the request log's spool is full")
        self._size += written
        self._unsynced.append(buffers)
        self._dirty.set()

    def _cut_back(self) -> None:
        self._full = True
        os.ftruncate(self._descriptor, self._size)

    async def _sync(self) -> None:
        self._dirty.clear()
        waiters, self._waiters = self._waiters, []
        count, size, descriptor = len(self._unsynced), self._size, self._descriptor
        parts, self._unsynced_parts[:] = list(self._unsynced_parts), []
        try:
            await asyncio.to_thread(_sync_and_close, descriptor, parts)
        except OSError as error:
            self.failed_syncs += 1
            _log.error("fdatasync of %s failed: %s", self._path(self._sequence), error.strerror)
            self._abandon_segment(waiters, error)
            return
        if descriptor == self._descriptor:
            del self._unsynced[:count]
            self._synced_size = size
        _resolve(waiters, None)

    def _abandon_segment(self, waiters: list[asyncio.Future[None]], error: OSError) -> None:
        """Write what may be lost to a new segment; whoever waited is told, never acknowledged."""
        lost, self._unsynced = self._unsynced, []
        os.ftruncate(self._descriptor, self._synced_size)
        try:
            self._rotate(sync=False)
            for buffers in lost:
                self._append(buffers)
        except SpoolUnavailable:
            _log.exception("records of a failed segment could not be written again")
        _resolve(waiters, SpoolUnavailable(f"the record could not be synced: {error.strerror}"))

    def _rotate(self, sync: bool = True) -> None:
        """Seal the segment and go on in a new one. Small enough to sync here, on the loop."""
        try:
            descriptor, size = self._new_segment()
        except OSError as error:
            self._full = True
            _log.error("no new spool segment: %s", error.strerror)
            return
        old, self._descriptor = self._descriptor, descriptor
        if sync:
            self._sync_sealed(old)
        os.close(old)
        self._size = self._synced_size = size
        self._unsynced, self._finals, self._started = [], 0, self._clock()

    def _sync_sealed(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self.failed_syncs += 1
            _log.error("fdatasync of a sealed segment failed: %s", error.strerror)
            for buffers in self._unsynced:
                os.writev(self._descriptor, buffers)

    def _new_segment(self) -> tuple[int, int]:
        """Create, lock and name the next segment, with the open intents already inside."""
        path = self._path(self._sequence + 1)
        hidden = path.with_name(f".{path.name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL
        descriptor = os.open(hidden, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            carried = b"".join(b"".join(buffers) for buffers in self._open_intents.values())
            size = len(MAGIC) + len(carried)
            if os.write(descriptor, MAGIC + carried) != size:
                raise SpoolUnavailable("the disk of the request log's spool is full")
            os.rename(hidden, path)
        except OSError:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            raise
        self._sequence += 1
        return descriptor, size

    def _path(self, sequence: int) -> Path:
        return self.folder / segment_name(self._writer, sequence)

    def _scan(self) -> bool:
        """Measure the folder; True when nothing more may be started."""
        own = self._path(self._sequence).name
        self._others_bytes = sum(size for name, size in folder_sizes(self.folder) if name != own)
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        return self._others_bytes + self._size >= self.log.spool_bytes or (
            free < self.log.segment_bytes
        )


class Part:
    """A response's own file in the spool, appended to as it arrives."""

    def __init__(self, path: Path, unsynced: list[int]):
        self.name = path.name
        self._unsynced = unsynced
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, data: bytes) -> None:
        """Add bytes; raises SpoolUnavailable if the disk will not take them."""
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise SpoolUnavailable(f"the spool cannot be written: {error.strerror}") from error
        if written != len(data):
            raise SpoolUnavailable("the disk of the request log's spool is full")

    def close(self) -> None:
        """Leave it to the next sync, which also closes it."""
        self._unsynced.append(self._descriptor)


def folder_sizes(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes in bytes of the spool's segments and parts, whoever wrote them."""
    sizes = []
    for place in (folder, folder / PARTS):
        for entry in os.scandir(place):
            with suppress(FileNotFoundError):
                if place != folder or entry.name.endswith(SUFFIX):
                    sizes.append((entry.name, entry.stat().st_size))
    return sizes


def _sync_and_close(descriptor: int, parts: list[int]) -> None:
    try:
        for part in parts:
            os.fdatasync(part)
    finally:
        for part in parts:
            os.close(part)
    os.fdatasync(descriptor)


def _resolve(waiters: list[asyncio.Future[None]], error: Exception | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
