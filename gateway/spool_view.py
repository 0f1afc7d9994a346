"""What is in the spool and perhaps not yet in the table, for readers: nothing is changed here.

Segments only grow and then vanish, so each is parsed once and continued where the last look ended.
Rows are kept without bodies; a body is read from its segment when it is asked for.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gateway.batches import segment_paths
from gateway.log_columns import Row, Unstorable, row_of
from gateway.segment import Entry, Kind, scan


@dataclass(slots=True)
class _Segment:
    """How far a segment has been read, and the final rows found so far."""

    offset: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


class SpoolView:
    """Finished requests that are in the spool now."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._segments: dict[Path, _Segment] = {}

    def refresh(self) -> None:
        """Look again: read what was added, forget segments that are gone."""
        paths = segment_paths(self._folder) if self._folder.is_dir() else []
        self._segments = {path: self._segments.get(path, _Segment()) for path in paths}
        for path, segment in self._segments.items():
            with suppress(FileNotFoundError):
                self._continue(path, segment)

    def rows(self) -> Iterator[Row]:
        """Their metadata, oldest segment first; one a request."""
        seen: set[str] = set()
        for segment in self._segments.values():
            for request_id, row in segment.rows.items():
                if request_id not in seen:
                    seen.add(request_id)
                    yield row

    def with_bodies(self, row: Row) -> Row | None:
        """The whole row; None if its segment has gone, so that it is in the table by now."""
        request_id = row["request_id"]
        for path, segment in self._segments.items():
            place = segment.places.get(request_id)
            if place is not None:
                entry = _entry_at(path, *place)
                if entry is not None and entry.meta.get("request_id") == request_id:
                    return row_of(entry, self._folder)
        return None

    def _continue(self, path: Path, segment: _Segment) -> None:
        if path.stat().st_size <= segment.offset:
            return
        with path.open("rb") as file:
            file.seek(segment.offset)
            data = file.read()
        base = segment.offset
        for item in scan(data):
            if isinstance(item, Entry):
                self._add(segment, item, (base + item.offset, item.size))
                segment.offset = base + item.offset + item.size
            elif not item.torn:
                segment.offset = base + item.offset + len(item.data)

    def _add(self, segment: _Segment, entry: Entry, place: tuple[int, int]) -> None:
        if entry.kind is not Kind.FINAL:
            return
        with suppress(Unstorable):
            row = row_of(entry, self._folder, bodies=False)
            segment.rows[row["request_id"]] = row
            segment.places[row["request_id"]] = place


def _entry_at(path: Path, offset: int, size: int) -> Entry | None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except FileNotFoundError:
        return None
    return next((item for item in scan(data) if isinstance(item, Entry)), None)
