"""Pinned references: the traffic that later windows are compared with, frozen into a file.

Under `LLMOPS_HOME/drift/<subject>/` lie the rows, named by their SHA-256, and `reference.json`,
which points to them. Who reads the rows checks the hash: a reference that was changed is refused.
Rows of users who were erased since are taken out at the next look, which makes a new file; the old
one goes. Who pins and who takes rows out wait for each other: each sees what the other has done.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.windows import Frame, Traffic
from gateway.audit import AuditRow
from gateway.database import now

FOLDER, POINTER = "drift", "reference.json"
ERASED, USER = "log.erase", "user-sha256:"  # the audit trail's words


class NoReference(LookupError):
    """Nothing is pinned for this traffic."""


class ReferenceDamaged(ValueError):
    """The file is gone, or is not the one that was pinned."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is pinned.

    Attributes:
        key: whose traffic it is (`Traffic.key`).
        file: name of the file with the rows.
        first, last: when they were asked, microseconds since the epoch.
        erased: rows that were taken out since it was pinned.
        version: of predictions, the served name of the version that made them.
        about: of predictions, what else is known: `label`, `time`, `dataset_id`.
    """

    key: str
    file: str
    sha256: str
    rows: int
    first: int
    last: int
    pinned_at: str
    pinned_by: str
    erased: int = 0
    version: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As verdicts call it."""
        return f"reference:{self.sha256[:12]}"


def folder_of(home: Path, key: str) -> Path:
    """Where the reference of `key` lies."""
    return home / FOLDER / quote(key, safe="@:")


def pin(
    home: Path, traffic: Traffic, rows: Frame, actor: str, about: Mapping[str, Any] | None = None
) -> Reference:
    """Freeze `rows` as the reference of `traffic`, in place of the one before. Predictions are
    those of `traffic.version`."""
    if rows.empty:
        raise NoReference(f"{traffic.key}: no request in that time, so there is nothing to pin")
    moment = now().isoformat(timespec="seconds")
    version = None if traffic.predictions is None else traffic.version
    reference = Reference(
        traffic.key, "", "", 0, 0, 0, moment, actor, version=version, about=dict(about or {})
    )
    with _alone(home, traffic.key):
        return _write(folder_of(home, traffic.key), reference, rows)


def current(home: Path, key: str, session: Session) -> tuple[Reference, Frame]:
    """The reference of `key` and its rows, without users who were erased since. Raises NoReference,
    ReferenceDamaged."""
    with _alone(home, key):
        reference = find(home, key)
        return without_erased(home, reference, load(home, reference), session)


@contextmanager
def _alone(home: Path, key: str) -> Iterator[None]:
    """Wait until nobody else reads or writes the reference of `key`."""
    run = home / "run"
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / f"reference:{quote(key, safe='')}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find(home: Path, key: str) -> Reference:
    """The reference of `key`. Raises NoReference."""
    try:
        return _read(folder_of(home, key) / POINTER)
    except FileNotFoundError as error:
        raise NoReference(f"{key}: no reference is pinned; pin one: {how_to_pin(key)}") from error


def every(home: Path) -> list[Reference]:
    """All that are pinned. Raises ReferenceDamaged."""
    return [_read(path) for path in sorted((home / FOLDER).glob(f"*/{POINTER}"))]


def how_to_pin(key: str) -> str:
    """The command that pins a reference of `key` (`Traffic.key`)."""
    parts = key.split(":")
    subject = parts[0] if parts[0] != "model" else ":".join(parts[:2])
    tenant = key.removeprefix(subject).removeprefix(":")
    command = f"llmops drift reference pin {subject}"
    return f"{command} --tenant {tenant}" if tenant else command


def _read(pointer: Path) -> Reference:
    try:
        return Reference(**orjson.loads(pointer.read_bytes()))
    except (TypeError, ValueError) as error:
        said = f"{pointer}: cannot be read: {error}; pin a reference anew"
        raise ReferenceDamaged(said) from error


def load(home: Path, reference: Reference) -> Frame:
    """Its rows. Raises ReferenceDamaged."""
    import pandas

    path = folder_of(home, reference.key) / reference.file
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReferenceDamaged(f"{path}: {error.strerror}; pin a reference anew") from error
    if found != reference.sha256:
        raise ReferenceDamaged(
            f"{path}: its SHA-256 is {found[:12]}…, pinned was {reference.sha256[:12]}…; "
            "pin a reference anew"
        )
    return pandas.read_parquet(path)


def without_erased(
    home: Path, reference: Reference, rows: Frame, session: Session
) -> tuple[Reference, Frame]:
    """The same without rows of users that `llmops logs erase` forgot since; for `current`."""
    gone = rows["unit"].isin([])
    for unit, micros in _erasures(session):
        gone |= (rows["unit"] == unit) & (rows["ts"] <= micros)
    if not gone.any():
        return reference, rows
    kept = rows[~gone].reset_index(drop=True)
    if kept.empty:
        shutil.rmtree(folder_of(home, reference.key))
        raise NoReference(f"{reference.key}: every user of its reference was erased; pin it anew")
    fewer = replace(reference, erased=reference.erased + int(gone.sum()))
    return _write(folder_of(home, reference.key), fewer, kept), kept


def _erasures(session: Session) -> Iterable[tuple[str, int]]:
    query = select(AuditRow.subject, AuditRow.ts).where(AuditRow.action == ERASED)
    for subject, moment in session.execute(query):
        yield subject.removeprefix(USER), int(moment.timestamp() * 1_000_000)


def _write(folder: Path, reference: Reference, rows: Frame) -> Reference:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = folder / f".rows.{os.getpid()}"
    rows.to_parquet(fresh, index=False, compression="zstd")
    fresh.chmod(0o600)
    with fresh.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    written = replace(
        reference,
        file=f"{digest[:16]}.parquet",
        sha256=digest,
        rows=len(rows),
        first=int(rows["ts"].min()),
        last=max(int(rows["ts"].max()), reference.last),  # windows begin after it, erased or not
    )
    fresh.replace(folder / written.file)
    pointer = folder / f".{POINTER}.{os.getpid()}"
    pointer.write_bytes(orjson.dumps(asdict(written), option=orjson.OPT_INDENT_2))
    pointer.replace(folder / POINTER)
    for old in folder.glob("*.parquet"):
        if old.name != written.file:
            old.unlink()
    return written


def told(reference: Reference) -> str:
    """One line about it."""
    moments = [
        datetime.fromtimestamp(one / 1_000_000, UTC).isoformat(timespec="minutes")
        for one in (reference.first, reference.last)
    ]
    erased = f", {reference.erased} taken out since (erased users)" if reference.erased else ""
    return f"{reference.rows} rows from {moments[0]} to {moments[1]}{erased}"
