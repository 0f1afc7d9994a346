"""Snapshots of raw material: events and features as they were known at one moment, frozen.

A snapshot is a folder under an id made of its content, `LLMOPS_HOME/data/<source>/<id>`, with a
manifest as a data set has it. Invariants: it is there whole or not at all; it never changes; the
same content is the same snapshot.
"""

import fcntl
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.configuration import ConfigurationError
from pipelines import flights
from pipelines.data_store import store_of
from pipelines.installation import Installation
from pipelines.manifest import (
    MANIFEST,
    DatasetChanged,
    Manifest,
    is_whole,
    read_manifest,
    seal,
    verify,
)
from pipelines.snapshot_store import SnapshotMissing

SHORTEST = 6  # characters of an id that are enough to name it


@dataclass(frozen=True, slots=True)
class Source:
    """Where raw material comes from.

    Attributes:
        write: puts its tables (Parquet) into a folder, of events from one moment to before another
            and as they were known at the latter; returns rows by file name.
        since, until: all of it.
        events: the file of events; `ids` names them, `moment` is their time.
        keys: the columns that name a row, of every file.
        settles_after: how long after an event's moment practically every outcome is known. Before
            that the known ones are no fair sample: a late flight's comes later.
    """

    write: Callable[[Path, datetime, datetime], dict[str, int]]
    since: datetime
    until: datetime
    events: str
    ids: str
    moment: str
    keys: Mapping[str, Sequence[str]]
    settles_after: timedelta = timedelta()


SOURCES: Mapping[str, Source] = {
    "flights": Source(
        write=flights.write,
        since=flights.FIRST,
        until=flights.LAST,
        events=flights.EVENTS,
        ids=flights.IDS,
        moment=flights.MOMENT,
        keys={
            flights.EVENTS: [flights.IDS],
            "carrier_rates.parquet": ["carrier", "event_timestamp"],
            "route_rates.parquet": ["route", "event_timestamp"],
            "weather.parquet": ["origin", "event_timestamp"],
        },
        settles_after=flights.SETTLES_AFTER,
    )
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot whose files are here."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """Made of its content."""
        return self.manifest.dataset_id

    @property
    def source(self) -> Source:
        """Where it came from."""
        return source_of(self.manifest.name)

    @property
    def events(self) -> Path:
        """The file of events."""
        return self.folder / self.source.events


def source_of(name: str) -> Source:
    """The source of that name. Raises ConfigurationError."""
    if name not in SOURCES:
        raise ConfigurationError(f"no source {name!r} (there are: {', '.join(sorted(SOURCES))})")
    return SOURCES[name]


def freeze(
    installation: Installation,
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
    run: str | None = None,
) -> Snapshot:
    """Freeze what source `name` says of a period, and keep it; all of it by default.

    `run`: the pass of a pipeline that it is for.

    Raises:
        ConfigurationError: there is no such source, or it has nothing of that period.
        WorkspaceError: it is here, but could not be kept where it is to be; doing it again does.
    """
    source = source_of(name)
    since, until = since or source.since, until or source.until
    root = _root(installation) / name
    fresh = root / f".{secrets.token_hex(8)}.new"
    fresh.mkdir(parents=True)
    try:
        rows = source.write(fresh, since, until)
        about = {
            "since": since.isoformat(),
            "until": until.isoformat(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "columns": {file: _columns(fresh / file) for file in rows},
        }
        manifest = seal(fresh, name, rows, about)
        folder = root / manifest.dataset_id
        with _placing(root):
            if not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    snapshot = Snapshot(folder, read_manifest(folder))
    store_of(installation).keep(folder, snapshot.manifest, run)
    return snapshot


def listed(installation: Installation) -> list[Mapping[str, Any]]:
    """What is known of every snapshot that is kept, the newest last; `here`: its files are."""
    root = _root(installation)
    told = [
        {**one, "here": (root / one["source"] / one["id"] / MANIFEST).exists()}
        for one in store_of(installation).listed()
    ]
    return sorted(told, key=lambda one: str(one["created_at"]))


def checkout(installation: Installation, snapshot_id: str) -> Snapshot:
    """The snapshot whose id begins so, fetched if need be, its files checked.

    Raises: SnapshotMissing: there is none, or several, or its files are nowhere.
    """
    kept = listed(installation)
    found = [one for one in kept if one["id"].startswith(snapshot_id)]
    if len(found) != 1 or len(snapshot_id) < SHORTEST:
        known = ", ".join(one["id"][:12] for one in (found or kept)[-10:]) or "none"
        raise SnapshotMissing(
            f"no single snapshot {snapshot_id!r} (there are: {known}); {SHORTEST} digits at least "
            "are wanted"
        )
    name, whole_id = found[0]["source"], found[0]["id"]
    folder = _root(installation) / name / whole_id
    with _placing(folder.parent):
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            store_of(installation).fetch(name, whole_id, folder)
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest)
    except DatasetChanged as error:
        raise SnapshotMissing(f"snapshot {whole_id}: {error}") from error
    return Snapshot(folder, manifest)


def _root(installation: Installation) -> Path:
    return installation.settings.home / "data"


@contextmanager
def _placing(root: Path) -> Iterator[None]:
    """Be the one who puts a snapshot of a source into its place; others wait."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f".{root.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _columns(path: Path) -> dict[str, str]:
    from pyarrow import parquet

    return {field.name: str(field.type) for field in parquet.read_schema(path)}
