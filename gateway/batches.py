"""Batches: which sealed segments are committed together, and the rows that are in them.

Invariants:
- The segments of a batch are fixed on disk (`batch.json`) before the table hears of it; they are
  removed only after its number is in the table. So a batch that is done again, after a crash at any
  instant, holds the same rows, and its number tells whether they are there already.
- Segments of one writer are taken in the order of writing, without a gap. An intent without an end
  in a dead writer's last segment is a request that its death interrupted, and becomes a row.
- Nothing blocks its neighbours: a record that cannot be stored, or bytes that are no record, go to
  `quarantine/` with the reason. So does a torn last write, which was never acknowledged, without
  further notice.
"""

import base64
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arro3.core as arrow
import orjson
import uuid_utils

from gateway.log_columns import Row, Unstorable, part_path, row_of, storable
from gateway.records import Status
from gateway.segment import SUFFIX, Damage, Entry, Kind, read_segment, writer_of

BATCH_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 16 * 1024 * 1024
CHUNK_ROWS = 8192
STALE_SECONDS = 60
MANIFEST = "batch.json"
IDENTITY = "id"
QUARANTINE = "quarantine"
# Whatever a single record can make of a conversion; it must not stop its neighbours.
UNSTORABLE = (Unstorable, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Batch:
    """Segments (file names) that are committed together as one numbered transaction."""

    number: int
    app_id: str
    segments: tuple[str, ...]


@dataclass(slots=True)
class Tally:
    """What was found in a batch, in rows (records), but for `damaged_bytes`."""

    rows: int = 0
    interrupted: int = 0
    duplicates: int = 0
    unstorable: int = 0
    damaged: int = 0
    damaged_bytes: int = 0
    torn: int = 0

    def add(self, other: "Tally") -> None:
        """Count the other's findings too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Reading:
    """One pass over a batch: its tally, what is set aside; `visit` may look at or change a row."""

    visit: Callable[[Row], None] = field(default=lambda _row: None)
    tally: Tally = field(default_factory=Tally)
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


class Batches:
    """The reader's side of a spool folder; only one process at a time may have it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.app_id = self._identity()

    def pending(self) -> Batch | None:
        """The batch that was fixed and not yet cleaned up, if any."""
        try:
            stored = orjson.loads((self.folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        return Batch(stored["number"], stored["app_id"], tuple(stored["segments"]))

    def fix(self, number: int, *, limit: int = BATCH_BYTES) -> Batch | None:
        """Fix the next batch on disk under `number`; None if no segment is sealed."""
        chosen: list[str] = []
        size = 0
        for path in self._sealed():
            size += path.stat().st_size
            if chosen and size > limit:
                break
            chosen.append(path.name)
        if not chosen:
            return None
        batch = Batch(number, self.app_id, tuple(chosen))
        content = {"number": number, "app_id": self.app_id, "segments": chosen}
        write_durably(self.folder / MANIFEST, orjson.dumps(content))
        return batch

    def tables(self, batch: Batch, reading: Reading) -> Iterator[arrow.Table]:
        """The batch's rows as Arrow tables of bounded size."""
        chunk: list[Row] = []
        size = 0
        for row in self._rows(batch, reading):
            reading.visit(row)
            chunk.append(row)
            size += len(row["request"] or "") + len(row["response"] or "")
            if size >= CHUNK_BYTES or len(chunk) >= CHUNK_ROWS:
                yield from _chunk_tables(chunk, reading)
                chunk, size = [], 0
        yield from _chunk_tables(chunk, reading)
        self._keep_quarantined(batch, reading)

    def _keep_quarantined(self, batch: Batch, reading: Reading) -> None:
        """Before the commit, so before removal; the same file again if the batch is done again."""
        if reading.quarantined:
            (self.folder / QUARANTINE).mkdir(exist_ok=True, mode=0o700)
            path = self.folder / QUARANTINE / f"{batch.app_id}-{batch.number:08d}.jsonl"
            write_durably(path, b"".join(orjson.dumps(x) + b"\n" for x in reading.quarantined))

    def clean(self, batch: Batch) -> None:
        """Remove a committed batch: parts, then segments, then the manifest. May be repeated."""
        for name in batch.segments:
            path = self.folder / name
            with suppress(FileNotFoundError):
                last = self._is_last(name)
                for part in _parts_of(path, self.folder, last=last):
                    part.unlink(missing_ok=True)
                path.unlink()
        sync_folder(self.folder)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        sync_folder(self.folder)

    def remove_stale(self) -> None:
        """Remove segments that a dying writer had not yet named (their records are elsewhere)."""
        for path in self.folder.glob(f".*{SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS and is_sealed(path):
                    path.unlink()

    def _identity(self) -> str:
        path = self.folder / IDENTITY
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(path, str(uuid_utils.uuid7()).encode())
        return path.read_text().strip()

    def _sealed(self) -> Iterator[Path]:
        """Sealed segments, each writer's in order and without a gap."""
        waiting: set[str] = set()
        for path in segment_paths(self.folder):
            writer, _ = writer_of(path)
            if writer in waiting:
                continue
            if is_sealed(path):
                yield path
            else:
                waiting.add(writer)

    def _rows(self, batch: Batch, reading: Reading) -> Iterator[Row]:
        for name in batch.segments:
            path = self.folder / name
            intents: dict[str, Entry] = {}
            for item in read_segment(path):
                if isinstance(item, Damage):
                    _note_damage(name, item, reading)
                elif item.kind is Kind.INTENT:
                    intents[str(item.meta.get("request_id"))] = item
                else:
                    intents.pop(str(item.meta.get("request_id")), None)
                    yield from self._row(name, item, reading)
            if intents and self._is_last(name):
                for request_id, intent in intents.items():
                    if request_id not in reading.seen:
                        yield from self._interrupted(name, intent, reading)

    def _row(self, name: str, entry: Entry, reading: Reading) -> Iterator[Row]:
        request_id = str(entry.meta.get("request_id"))
        if request_id in reading.seen:
            reading.tally.duplicates += 1
            return
        reading.seen.add(request_id)
        try:
            row = row_of(entry, self.folder)
        except UNSTORABLE as error:
            reading.tally.unstorable += 1
            reading.quarantined.append(_set_aside(name, str(error), entry))
            return
        reading.tally.rows += 1
        yield row

    def _interrupted(self, name: str, intent: Entry, reading: Reading) -> Iterator[Row]:
        reading.tally.interrupted += 1
        yield from self._row(name, interrupted_entry(intent), reading)

    def _is_last(self, name: str) -> bool:
        """Whether its writer wrote no later segment. To be asked of sealed segments only."""
        writer, sequence = writer_of(Path(name))
        for path in self.folder.glob(f"{writer}-*{SUFFIX}"):
            if writer_of(path)[1] > sequence:
                return False
        return True


def segment_paths(folder: Path) -> list[Path]:
    """All named segments, each writer's in the order of writing."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def is_sealed(path: Path) -> bool:
    """Whether the segment's writer has let go of it, so that nothing more is added."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def interrupted_entry(intent: Entry) -> Entry:
    """The record of a request whose gateway died: what its intent and its part file tell."""
    part = intent.meta.get("request_id")
    meta = {**intent.meta, "status": Status.INTERRUPTED.value, "response_part": part}
    return Entry(Kind.FINAL, meta, b"", b"")


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` as a whole, on the disk when this returns."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunk_tables(chunk: list[Row], reading: Reading) -> Iterator[arrow.Table]:
    tables, unfit = storable(chunk)
    for row, reason in unfit:
        reading.tally.rows -= 1
        reading.tally.unstorable += 1
        reading.quarantined.append({"reason": reason, "row": {k: str(v) for k, v in row.items()}})
    yield from tables


def _note_damage(name: str, damage: Damage, reading: Reading) -> None:
    if damage.torn:
        reading.tally.torn += 1
    else:
        reading.tally.damaged += 1
        reading.tally.damaged_bytes += len(damage.data)
    reading.quarantined.append(
        {
            "reason": "unfinished last write" if damage.torn else "damaged bytes",
            "segment": name,
            "offset": damage.offset,
            "data": base64.b64encode(damage.data).decode(),
        }
    )


def _set_aside(name: str, reason: str, entry: Entry) -> dict[str, Any]:
    return {
        "reason": reason,
        "segment": name,
        "meta": entry.meta,
        "request": base64.b64encode(entry.request).decode(),
        "response": base64.b64encode(entry.response).decode(),
    }


def _parts_of(path: Path, spool: Path, *, last: bool) -> Iterator[Path]:
    """Part files that the segment's rows took their responses from."""
    for item in read_segment(path):
        if isinstance(item, Damage):
            continue
        if item.kind is Kind.FINAL:
            part = part_path(spool, item.meta.get("response_part"))
        else:
            part = part_path(spool, item.meta.get("request_id")) if last else None
        if part is not None:
            yield part
