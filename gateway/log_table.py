"""The request log's Delta table: made, appended to exactly once, rewritten only by its one shipper.

A batch's number is committed as a Delta application transaction together with its rows. A repeated
number is not refused by Delta itself, so whoever appends asks `last_batch` first and is the only
writer (the spool's lock). Bodies are left out of the statistics in the Delta log, so that erasing
a row and vacuuming its file leaves nothing of it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import arro3.core as arrow
import orjson
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError

from gateway.log_columns import BODIES, STATISTICS, table_of

TARGET_FILE_BYTES = 128 * 1024 * 1024
ROW_GROUP_ROWS = 16_384
SMALL_FILES = 48
KEPT_VERSION_HOURS = 1
_CONFIGURATION = {
    "delta.dataSkippingStatsColumns": ",".join(STATISTICS),
    "delta.logRetentionDuration": f"interval {KEPT_VERSION_HOURS} hours",
    "delta.deletedFileRetentionDuration": f"interval {KEPT_VERSION_HOURS} hours",
    "delta.checkpointInterval": "50",
}

TableError = (DeltaError, CommitFailedError, OSError)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of the table and what the Delta log knows of its rows."""

    path: str
    size: int
    records: int
    first_id: str | None
    last_id: str | None
    day: str


class LogTable:
    """The table at `uri` (a folder or an object store's URL)."""

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None):
        self.uri = uri
        self.storage_options = storage_options or None
        self.local = "://" not in uri
        self._table: DeltaTable | None = None
        self._properties = WriterProperties(
            compression="ZSTD",
            compression_level=3,
            max_row_group_size=ROW_GROUP_ROWS,
            column_properties={
                name: ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
                for name in BODIES
            },
        )

    @property
    def exists(self) -> bool:
        """Whether the table has been made."""
        return self._table is not None or DeltaTable.is_deltatable(self.uri, self.storage_options)

    def open(self) -> DeltaTable:
        """The table at its newest version; made if it is not there."""
        if self._table is None and not self.exists:
            if self.local:
                Path(self.uri).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._table = DeltaTable.create(
                self.uri,
                schema=Schema.from_arrow(table_of([]).schema),
                partition_by=["date"],
                mode="ignore",
                name="requests",
                configuration=_CONFIGURATION,
                storage_options=self.storage_options,
            )
        elif self._table is None:
            self._table = DeltaTable(self.uri, storage_options=self.storage_options)
        else:
            self._table.update_incremental()
        return self._table

    def last_batch(self, app_id: str) -> int:
        """Number of the newest batch of this spool that is in the table; 0 if there is none."""
        return int(self.open().transaction_version(app_id) or 0)

    def append(self, tables: Iterator[arrow.Table], app_id: str, number: int) -> bool:
        """Commit the rows as batch `number`; False if there was none. Durable when it returns.

        Raises `TableError`; a conflict (CommitFailedError) means: ask `last_batch` again.
        """
        first = next(tables, None)
        if first is None:
            return False
        batches = (batch for table in chain([first], tables) for batch in table.to_batches())
        table = self.open()
        write_deltalake(
            table,
            arrow.RecordBatchReader.from_batches(first.schema, batches),
            mode="append",
            writer_properties=self._properties,
            commit_properties=CommitProperties(app_transactions=[Transaction(app_id, number)]),
        )
        self._sync(table)
        return True

    def files(self) -> list[DataFile]:
        """The table's live files."""
        return data_files(self.open())

    def crowded_days(self, small_files: int = SMALL_FILES) -> list[str]:
        """Days that hold at least so many small files."""
        counts: dict[str, int] = {}
        for file in self.files():
            if file.size < TARGET_FILE_BYTES // 2:
                counts[file.day] = counts.get(file.day, 0) + 1
        return sorted(day for day, count in counts.items() if count >= small_files)

    def compact(self, days: Iterable[str]) -> int:
        """Merge the small files of `days`; returns how many files were replaced."""
        replaced = 0
        table = self.open()
        for day in days:
            metrics = table.optimize.compact(
                partition_filters=[("date", "=", day)],
                target_size=TARGET_FILE_BYTES,
                max_concurrent_tasks=1,
                writer_properties=self._properties,
            )
            replaced += int(metrics["numFilesRemoved"])
        if replaced:
            self._sync(table)
        return replaced

    def delete(self, condition: str) -> int:
        """Delete rows; returns how many."""
        metrics = self.open().delete(condition, writer_properties=self._properties)
        return int(metrics["num_deleted_rows"] or 0)

    def clear(self, columns: Sequence[str], condition: str) -> int:
        """Set columns of rows to null; returns how many rows."""
        metrics = self.open().update(
            updates=dict.fromkeys(columns, "NULL"),
            predicate=condition,
            writer_properties=self._properties,
        )
        return int(metrics["num_updated_rows"])

    def vacuum(self, *, hours: int = KEPT_VERSION_HOURS) -> int:
        """Remove files that no version of the last `hours` needs; returns how many."""
        table = self.open()
        removed = table.vacuum(
            retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=True
        )
        table.create_checkpoint()
        table.cleanup_metadata()
        return len(removed)

    def _sync(self, table: DeltaTable) -> None:
        """Put the newest commit and its files on the disk: Delta itself does not."""
        if not self.local:
            return
        root = Path(self.uri)
        commit = root / "_delta_log" / f"{table.version():020d}.json"
        with suppress(FileNotFoundError):
            paths = {commit, commit.parent, root}
            for line in commit.read_bytes().splitlines():
                added = orjson.loads(line).get("add")
                if added:
                    paths |= {root / added["path"], (root / added["path"]).parent}
            for path in paths:
                _fsync(path)


def data_files(table: DeltaTable) -> list[DataFile]:
    """The live files of an open table, in the order of its log."""
    actions = table.get_add_actions(flatten=True)
    size = actions.num_rows

    def values(name: str, convert: Callable[[Any], Any] = lambda value: value) -> list[Any]:
        if name not in actions.column_names:
            return [None] * size
        return [convert(value) for value in actions.column(name).to_pylist()]

    rows = zip(
        values("path"),
        values("size_bytes"),
        values("num_records", lambda value: value or 0),
        values("min.request_id"),
        values("max.request_id"),
        values("partition.date", str),
        strict=True,
    )
    return [DataFile(*row) for row in rows]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
