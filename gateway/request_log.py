"""The request log as it is read: the table together with what is still in the spool.

A request is seen from the moment its record is written, and once: the spool is read first, the
table after it, so a commit in between shows a row in both (the spool's copy is left out) and never
in none. A version of the table may be vacuumed away under a reader, which then looks again.
Without `deltalake` installed there is no table and the spool alone is read.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import arro3.core as arrow
import duckdb
import orjson

from gateway.configuration import Log
from gateway.log_columns import BODIES, COLUMNS, METADATA, Row, table_of
from gateway.settings import Settings
from gateway.spool_view import SpoolView

if TYPE_CHECKING:
    from gateway.log_table import DataFile

T = TypeVar("T")

ATTEMPTS = 4
JSON_COLUMNS = ("tags", "contexts", "request", "response")
_ODD_TYPES = ("INTERVAL", "UNION", "BIT", "ENUM", "MAP", "TIME WITH", "BIGNUM", "VARIANT",
              "GEOMETRY")  # fmt: skip


class LogUnavailable(RuntimeError):
    """The log cannot be read; the message says what is missing."""


class QueryRefused(ValueError):
    """Not one SELECT over `requests`, or DuckDB cannot run it."""


class _Changed(RuntimeError):
    """The spool or the table changed under the reader; look again."""


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of a query, in Python's types; money is Decimal, times are aware."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        """Each row by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class LogReader:
    """Reads one log. Its methods may be called from any thread; keep it open, opening costs."""

    def __init__(self, spool: Path, uri: str, storage_options: dict[str, str] | None = None):
        self._spool = SpoolView(spool)
        self._uri = uri
        self._options = storage_options or None
        self._table: Any = None
        self._version = -1
        self._files: list[DataFile] = []
        self._committed: set[str] = set()
        self._checked: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, settings: Settings, log: Log) -> "LogReader":
        """The log that settings and configuration name."""
        return cls(settings.spool_dir, log.table or settings.log_table, log.storage_options)

    @property
    def columns(self) -> dict[str, str]:
        """Names and kinds of the columns of `requests`."""
        return dict(COLUMNS)

    def row(self, identifier: str) -> Row | None:
        """One request by its id, the `chatcmpl-…` form of it, or the upstream's own id."""
        return self._look(lambda: self._row(identifier.strip()))

    def rows(
        self,
        where: str = "true",
        parameters: Sequence[Any] = (),
        *,
        columns: Sequence[str] = METADATA,
        order: str = "ts DESC",
        limit: int | None = None,
    ) -> list[Row]:
        """Rows that fit an SQL condition. For callers of our own: nothing is checked."""
        chosen = ", ".join(map(_quoted, columns))
        ending = f"ORDER BY {order}" + (f" LIMIT {limit:d}" if limit is not None else "")
        sql = f"SELECT {chosen} FROM requests WHERE {where} {ending}"
        return self.select(sql, parameters, bodies=not set(BODIES).isdisjoint(columns)).dicts()

    def select(self, sql: str, parameters: Sequence[Any] = (), *, bodies: bool = False) -> Result:
        """Run a SELECT over `requests` that is our own: nothing is checked."""

        def run() -> Result:
            with self._connection(bodies=bodies) as connection:
                return _fetched(connection.sql(sql, params=list(parameters)))

        return self._look(run)

    def query(self, sql: str, *, limit: int | None = None) -> Result:
        """Run one SELECT of a user over the view `requests`; it can reach nothing else.

        No file but the table's own can be opened and no setting changed. Raises QueryRefused.
        """

        def run() -> Result:
            with self._connection(bodies=True) as connection:
                _confine(connection, self._uri if self._files else None)
                try:
                    relation = connection.sql(_one_select(connection, sql))
                    return _fetched(relation if limit is None else relation.limit(limit))
                except (duckdb.IOException, _Changed):
                    raise
                except (duckdb.Error, RuntimeError) as error:
                    raise QueryRefused(str(error)) from error

        return self._look(run)

    def export(self, out: Path, kind: str, since: datetime | None = None) -> int:
        """Write rows to a `jsonl` or `parquet` file, whole, oldest first; returns how many."""
        form = {"jsonl": "FORMAT json", "parquet": "FORMAT parquet, COMPRESSION zstd"}[kind]
        micros = 0 if since is None else int(since.timestamp() * 1_000_000)
        fresh = out.with_name(f".{out.name}.new")

        def run() -> int:
            with self._connection(bodies=True) as connection:
                found = connection.execute(
                    f"COPY (SELECT * FROM requests WHERE ts >= make_timestamptz({micros:d})"
                    f" ORDER BY ts, request_id) TO '{_escaped(str(fresh))}' ({form})"
                ).fetchone()
            fresh.rename(out)
            return int(found[0]) if found else 0

        return self._look(run)

    def _look(self, work: Callable[[], T]) -> T:
        """Do `work` on a fresh look at spool and table; again if they change under it."""
        with self._lock:
            for attempt in range(ATTEMPTS):
                try:
                    self._refresh(anew=attempt > 0)
                    return work()
                except (duckdb.IOException, _Changed):
                    if attempt == ATTEMPTS - 1:
                        raise
        raise LogUnavailable("the log keeps changing under its reader")

    def _refresh(self, *, anew: bool) -> None:
        self._spool.refresh()
        if anew:
            self._table, self._version = None, -1
        if self._table is None:
            self._table = _open_table(self._uri, self._options)
        elif self._table.version() >= 0:
            self._table.update_incremental()
        if self._table is not None and self._table.version() != self._version:
            from gateway.log_table import data_files

            self._files = data_files(self._table)
            self._version = self._table.version()
            self._committed, self._checked = set(), set()
        waiting = {row["request_id"] for row in self._spool.rows()}
        self._note_committed(waiting - self._checked)
        self._checked = waiting

    def _note_committed(self, waiting: set[str]) -> None:
        """Find which of the spool's requests are in the table by now."""
        if not waiting:
            return
        first, last = min(waiting), max(waiting)
        files = [
            file.path for file in self._files
            if (file.first_id or "") <= last and (file.last_id is None or file.last_id >= first)
        ]  # fmt: skip
        if not files:
            return
        with duckdb.connect() as connection:
            ids = arrow.Array(list(waiting), arrow.DataType.string())
            connection.register("waiting", arrow.Table.from_pydict({"request_id": ids}))
            found = connection.execute(
                f"SELECT request_id FROM {self._read(connection, files)}"
                " WHERE request_id BETWEEN ? AND ? AND request_id IN (FROM waiting)",
                [first, last],
            ).fetchall()
        self._committed.update(request_id for (request_id,) in found)

    def _waiting(self) -> Iterator[Row]:
        return (row for row in self._spool.rows() if row["request_id"] not in self._committed)

    @contextmanager
    def _connection(self, *, bodies: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """A database of its own, in memory, that holds the view `requests` and nothing else."""
        rows = list(self._waiting())
        if bodies:
            rows = [self._whole(row) for row in rows]
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("incoming", table_of(rows))
            connection.execute("CREATE TABLE spooled AS SELECT * FROM incoming")
            connection.unregister("incoming")
            names = ", ".join(map(_quoted, COLUMNS))
            view = f"SELECT {names} FROM spooled"
            if self._files:
                files = [file.path for file in self._files]
                view += f" UNION ALL SELECT {names} FROM {self._read(connection, files)}"
            connection.execute(f"CREATE VIEW requests AS {view}")
            yield connection

    def _whole(self, row: Row) -> Row:
        whole = self._spool.with_bodies(row)
        if whole is None:
            raise _Changed
        return whole

    def _row(self, identifier: str) -> Row | None:
        request_id = _request_id(identifier)
        for row in self._waiting():
            if row["request_id"] == request_id or row["upstream_id"] == identifier:
                return _python(self._whole(row))
        files = [
            file.path for file in self._files
            if (file.first_id or "") <= request_id <= (file.last_id or request_id)
        ]  # fmt: skip
        return self._row_in(files, "request_id", request_id) or self._row_in(
            [file.path for file in self._files], "upstream_id", identifier
        )

    def _row_in(self, files: list[str], column: str, value: str) -> Row | None:
        if not files:
            return None
        names = ", ".join(map(_quoted, COLUMNS))
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            source = self._read(connection, files)
            found = _fetched(
                connection.sql(
                    f"SELECT {names} FROM {source} WHERE {column} = ? LIMIT 1", params=[value]
                )
            ).dicts()
        return found[0] if found else None

    def _read(self, connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> str:
        """The table's files as something to select from."""
        if "://" in self._uri:
            return _remote(connection, self._table)
        listed = ", ".join(f"'{_escaped(str(Path(self._uri) / path))}'" for path in paths)
        return f"read_parquet([{listed}], hive_partitioning = true, hive_types = {{'date': DATE}})"


def presented(row: Row) -> dict[str, Any]:
    """A row as JSON shows it: money as exact text, times in ISO 8601, JSON columns as values."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if name in JSON_COLUMNS and isinstance(value, str):
            shown[name] = _value(value)
        elif name in ("cost_usd", "saved_usd"):
            shown[name] = None if value is None else f"{value:f}"
        elif hasattr(value, "isoformat"):
            shown[name] = value.isoformat()
        else:
            shown[name] = value
    return shown


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _python(row: Row) -> Row:
    """A row of the spool in the types that the table's rows have."""
    table = table_of([row])
    return {name: table.column(name)[0].as_py() for name in COLUMNS}


def _request_id(identifier: str) -> str:
    """The request id inside an id such as `chatcmpl-<id>`; the id itself if there is none."""
    for candidate in (identifier, identifier.partition("-")[2]):
        try:
            return str(UUID(candidate))
        except ValueError:
            continue
    return identifier


def _open_table(uri: str, options: dict[str, str] | None) -> Any:
    try:
        from deltalake import DeltaTable
    except ImportError:
        return None
    if not DeltaTable.is_deltatable(uri, options):
        return None
    return DeltaTable(uri, storage_options=options)


def _remote(connection: duckdb.DuckDBPyConnection, table: Any) -> str:
    """An object store's table, through pyarrow, whose credentials are the table's."""
    try:
        dataset = table.to_pyarrow_dataset()
    except ImportError as error:
        raise LogUnavailable("reading a log on an object store needs pyarrow installed") from error
    connection.register("remote", dataset)
    return "remote"


def _confine(connection: duckdb.DuckDBPyConnection, uri: str | None) -> None:
    """From here on no file but the table's can be opened, and no setting changed."""
    if uri is not None and "://" not in uri:
        folder = _escaped(str(Path(uri).absolute()))
        connection.execute(f"SET allowed_directories = ['{folder}/']")
    for setting in (
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "temp_directory = ''",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


def _one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise QueryRefused("only one SELECT over `requests` is allowed")
    return str(statements[0].query)


def _fetched(relation: duckdb.DuckDBPyRelation | None) -> Result:
    """All rows, by way of Arrow; types that it cannot give back come as text."""
    if relation is None:
        return Result([], [])
    names = list(relation.columns)
    if any(odd in str(kind) for kind in relation.types for odd in _ODD_TYPES):
        relation = relation.project(
            ", ".join(_as_text(*x) for x in zip(names, relation.types, strict=True))
        )
    table = arrow.RecordBatchReader.from_stream(relation).read_all()
    columns = [table.column(index).to_pylist() for index in range(table.num_columns)]
    return Result(names, list(zip(*columns, strict=True)) if columns else [])


def _as_text(name: str, kind: Any) -> str:
    quoted = _quoted(name)
    if any(odd in str(kind) for odd in _ODD_TYPES):
        return f"CAST({quoted} AS VARCHAR) AS {quoted}"
    return quoted


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _escaped(text: str) -> str:
    return text.replace("'", "''")
