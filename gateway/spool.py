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
- A segment is let go of (unlocked) only when all of it is synced, or written anew elsewhere.
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
_NOT_SYNCED = "the spool's segment could not be synced before"
_log = logging.getLogger(__name__)


class SpoolUnavailable(OSError):
    """The spool cannot take a record: its cap is reached, or the disk is full or broken."""


class Segment:
    """One file that a writer appends to, and what of it is not on the disk yet."""

    def __init__(self, descriptor: int, path: Path, carried: list[list[bytes]]):
        self.path = path
        self.descriptor = descriptor
        self.unsynced = carried
        self.size = len(MAGIC) + sum(len(b"".join(buffers)) for buffers in carried)
        self.synced_size = len(MAGIC)
        self.placed = False
        self.failed = False

    def append(self, buffers: list[bytes]) -> None:
        """Write one record, whole or not at all. Raises SpoolUnavailable."""
        wanted = sum(map(len, buffers))
        try:
            written = os.writev(self.descriptor, buffers)
        except OSError as error:
            os.ftruncate(self.descriptor, self.size)
            raise SpoolUnavailable(f"the spool cannot be written: {error.strerror}") from error
        if written != wanted:
            os.ftruncate(self.descriptor, self.size)
            raise SpoolUnavailable("the disk of the request log's spool is full")
        self.size += written
        self.unsynced.append(buffers)

    def confirm(self, size: int, records: int) -> None:
        """The first `size` bytes, with so many of the unsynced records, are on the disk."""
        self.synced_size = size
        self.placed = True
        del self.unsynced[:records]

    def seal(self) -> None:
        """Let go of the file; what may not be on the disk has been written elsewhere."""
        if self.failed:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.synced_size)
        os.close(self.descriptor)


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
        self._unsynced_parts: list[int] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._dirty = asyncio.Event()
        self._others_bytes = 0
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        self._current = self._new_segment()
        self._retired: list[Segment] = []
        self._finals = 0
        self._started = self._scanned = self._clock()
        self._full = self._scan()

    def ensure_room(self) -> None:
        """Raise SpoolUnavailable if a request that starts now might not be logged."""
        used = self._others_bytes + self._current.size
        if self._full or self._current.failed or used >= self.log.spool_bytes:
            raise SpoolUnavailable("the request log's spool is full or its disk is failing")

    def begin(self, record: RequestRecord) -> None:
        """Write the intent: this request is about to reach its upstream."""
        buffers = encode(Kind.INTENT, orjson.dumps(record))
        self._append(buffers)
        self._open_intents[record.request_id] = buffers

    def finish(self, record: RequestRecord, request: bytes, response: bytes) -> None:
        """Write how the request ended, with both bodies. Also without a `begin` before."""
        self._append(encode(Kind.FINAL, orjson.dumps(record), request, response))
        self._open_intents.pop(record.request_id, None)
        self._finals += 1
        if self._current.size >= self.log.segment_bytes:
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
        while True:
            try:
                await self._tend()
            except (
                OSError
            ) as error:  # no descriptor left, say: nothing more is taken until it heals
                self._full = True
                _log.error("the spool cannot be tended: %s", error)
                waiters, self._waiters = self._waiters, []
                _resolve(waiters, SpoolUnavailable("the record could not be synced"))
                await asyncio.sleep(USAGE_SCAN_SECONDS)

    async def _tend(self) -> None:
        """One round of `run`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(USAGE_SCAN_SECONDS / 2):
                await self._dirty.wait()
        if self._dirty.is_set():
            await asyncio.sleep(0 if self.log.durability == "sync" else self.log.sync_seconds)
            await self._sync()
        now = self._clock()
        if self._finals and now - self._started >= self.log.segment_seconds:
            self._rotate()
        if now - self._scanned >= USAGE_SCAN_SECONDS:
            self._scanned, self._full = now, self._scan()
            if self._current.failed:
                self._dirty.set()

    def close(self) -> None:
        """Seal everything; an empty segment is removed. Later appends fail."""
        _sync_all([], self._unsynced_parts, [])
        self._unsynced_parts.clear()
        for segment in (*self._retired, self._current):
            try:
                os.fdatasync(segment.descriptor)
            except OSError as error:
                self._note_failure(segment, error)
            if segment.size == len(MAGIC):
                segment.path.unlink()
            os.close(segment.descriptor)
            segment.descriptor = -1
        self._retired = []

    def _append(self, buffers: list[bytes]) -> None:
        try:
            self._current.append(buffers)
        except SpoolUnavailable:
            self._full = True
            raise
        self._dirty.set()

    async def _sync(self) -> None:
        self._dirty.clear()
        waiters, self._waiters = self._waiters, []
        parts, self._unsynced_parts[:] = list(self._unsynced_parts), []
        held = [*self._retired, self._current]
        failure = next((_NOT_SYNCED for segment in held if segment.failed), None)
        marks = [(s, s.size, len(s.unsynced)) for s in held if not s.failed]
        folders = [] if all(s.placed for s, _, _ in marks) else [self.folder]
        folders += [self.folder / PARTS] if parts else []
        descriptors = [s.descriptor for s, _, _ in marks]
        errors = await asyncio.to_thread(_sync_all, descriptors, parts, folders)
        for (segment, size, records), error in zip(marks, errors, strict=True):
            if error is None:
                segment.confirm(size, records)
            else:
                self._note_failure(segment, error)
                failure = f"the record could not be synced: {error.strerror}"
        self._let_go(held)
        _resolve(waiters, SpoolUnavailable(failure) if failure else None)

    def _note_failure(self, segment: Segment, error: OSError) -> None:
        segment.failed = True
        self.failed_syncs += 1
        _log.error("fdatasync of %s failed: %s", segment.path, error.strerror)

    def _let_go(self, held: list[Segment]) -> None:
        """Rewrite what failed segments may have lost, and seal those that nothing waits for."""
        for segment in held:
            if segment.failed and (segment is not self._current or self._rotate()):
                self._rewrite(segment)
        for segment in list(self._retired):
            if not segment.unsynced:
                segment.seal()
                self._retired.remove(segment)

    def _rewrite(self, segment: Segment) -> None:
        """Whoever waited is told of the failure all the same: it is never acknowledged."""
        try:
            while segment.unsynced:
                self._append(segment.unsynced[0])
                del segment.unsynced[0]
        except SpoolUnavailable as error:
            _log.error("records of %s could not be written again: %s", segment.path, error)

    def _rotate(self) -> bool:
        """Go on in a new segment. The old one stays locked until the next sync has covered it."""
        try:
            fresh = self._new_segment()
        except OSError as error:
            self._full = True
            _log.error("no new spool segment: %s", error.strerror)
            return False
        self._retired.append(self._current)
        self._others_bytes += self._current.size
        self._current, self._finals, self._started = fresh, 0, self._clock()
        self._dirty.set()
        return True

    def _new_segment(self) -> Segment:
        """Create, lock and name the next segment, with the open intents already inside."""
        path = self._path(self._sequence + 1)
        hidden = path.with_name(f".{path.name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL
        descriptor = os.open(hidden, flags, 0o600)
        carried = list(self._open_intents.values())
        content = MAGIC + b"".join(b"".join(buffers) for buffers in carried)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.write(descriptor, content) != len(content):
                raise SpoolUnavailable("the disk of the request log's spool is full")
            os.rename(hidden, path)
        except OSError:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            raise
        self._sequence += 1
        return Segment(descriptor, path, carried)

    def _path(self, sequence: int) -> Path:
        return self.folder / segment_name(self._writer, sequence)

    def _scan(self) -> bool:
        """Measure the folder; True when nothing more may be started."""
        own = self._current.path.name
        self._others_bytes = sum(size for name, size in folder_sizes(self.folder) if name != own)
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        return self._others_bytes + self._current.size >= self.log.spool_bytes or (
            free < self.log.segment_bytes
        )


class Part:
    """A response's own file in the spool, appended to as it arrives."""

    def __init__(self, path: Path, unsynced: list[int]):
        self.name = path.name
        self._unsynced = unsynced
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise SpoolUnavailable(f"no part file in the spool: {error.strerror}") from error

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


def _sync_all(
    descriptors: list[int], parts: list[int], folders: list[Path]
) -> list[OSError | None]:
    """Sync parts and the names of new files, then segments. One result for each segment."""
    failed = None
    for part in parts:
        failed = _fdatasync(part) or failed
        os.close(part)
    for folder in folders:
        failed = _sync_folder(folder) or failed
    return [_fdatasync(descriptor) or failed for descriptor in descriptors]


def _fdatasync(descriptor: int) -> OSError | None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        return error
    return None


def _sync_folder(folder: Path) -> OSError | None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return _fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _resolve(waiters: list[asyncio.Future[None]], error: Exception | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
