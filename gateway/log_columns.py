"""The columns of the request log, and how a spooled record becomes a row of them.

Every value is checked against its column's type here, so that what reaches the table can always be
stored; a record that does not fit raises `Unstorable` and is set aside by whoever reads it. Text
columns hold any Unicode, NUL included; a body that is not UTF-8 is kept as Base64, and its
`…_encoding` column says so. Money is `decimal(18,9)` USD, made from integer nano-USD.
"""

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import arro3.core as arrow
import orjson

from gateway.records import usd_text
from gateway.segment import Entry
from gateway.spool import PARTS
from gateway.transcript import completed_response

Row = dict[str, Any]

MAX_BODY_BYTES = 256 * 1024 * 1024
_MAX_INT = 2**63 - 1
_MAX_NANO = 10**18 - 1
_MAX_TS = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
_DAY_US = 86_400 * 1_000_000

TEXT, INTEGER, FLOAT, BOOLEAN = "text", "integer", "float", "boolean"
MONEY, TIME, DAY, JSON, BODY = "money", "time", "day", "json", "body"

# Narrow columns first: file statistics are kept for those that `STATISTICS` names.
COLUMNS: dict[str, str] = {
    "request_id": TEXT, "ts": TIME, "date": DAY, "tenant": TEXT, "team": TEXT, "key_id": TEXT,
    "user": TEXT, "episode_id": TEXT, "endpoint": TEXT, "model": TEXT, "target": TEXT,
    "adapter": TEXT, "experiment": TEXT, "variant": TEXT, "prompt_name": TEXT,
    "prompt_version": TEXT, "prompt_sha": TEXT, "status": TEXT, "http_status": INTEGER,
    "error_code": TEXT, "finish_reason": TEXT, "stream": BOOLEAN, "cache": TEXT,
    "ttft_ms": FLOAT, "latency_ms": FLOAT, "overhead_ms": FLOAT, "input_tokens": INTEGER,
    "cached_tokens": INTEGER, "output_tokens": INTEGER, "reasoning_tokens": INTEGER,
    "usage_source": TEXT, "cost_usd": MONEY, "saved_usd": MONEY, "price_version": TEXT,
    "tags": JSON, "config_hash": TEXT, "upstream_id": TEXT, "contexts": JSON,
    "request_encoding": TEXT, "response_encoding": TEXT, "request": BODY, "response": BODY,
}  # fmt: skip
BODIES = ("contexts", "request", "response")
METADATA = tuple(name for name in COLUMNS if name not in BODIES)
STATISTICS = ("request_id", "ts")
IDENTITY = ("user", "episode_id", "tags", *BODIES)
_SOURCES = {"cost_usd": "cost_nano_usd", "saved_usd": "saved_nano_usd"}
_DERIVED = {"date", "request", "response", "request_encoding", "response_encoding"}


class Unstorable(ValueError):
    """A record that is whole on disk but does not fit the table; the message says why."""


def row_of(entry: Entry, spool: Path, *, bodies: bool = True) -> Row:
    """The row of a final record, with its part file read in. Raises Unstorable."""
    meta = entry.meta
    row: Row = {"request_id": None, "ts": None, "date": None}
    for name, kind in COLUMNS.items():
        if name not in _DERIVED:
            row[name] = _checked(name, kind, meta.get(_SOURCES.get(name, name)))
    if not row["request_id"] or row["ts"] is None:
        raise Unstorable("it has no request_id or no ts")
    row["date"] = row["ts"] // _DAY_US
    row["http_status"] = row["http_status"] or 0
    row["stream"] = bool(row["stream"])
    if bodies:
        response = entry.response or read_part(spool, meta.get("response_part"))
        row["request"], row["request_encoding"] = text_of(entry.request)
        row["response"], row["response_encoding"] = text_of(
            completed_response(response) if row["stream"] else response
        )
    return row


def read_part(spool: Path, name: object) -> bytes:
    """A response kept in a file of its own; empty if there is none. A name is never a path."""
    path = part_path(spool, name)
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BODY_BYTES)
    except FileNotFoundError:
        return b""


def part_path(spool: Path, name: object) -> Path | None:
    """Where a part called `name` lies, or None if that is not a plain file name."""
    if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
        return None
    return spool / PARTS / name


def text_of(body: bytes) -> tuple[str | None, str | None]:
    """A body as text, and its encoding: None for UTF-8, else `base64`. An empty body is null."""
    if not body:
        return None, None
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"


def table_of(rows: Sequence[Row], names: Iterable[str] = COLUMNS) -> arrow.Table:
    """An Arrow table of rows that `row_of` made."""
    return arrow.Table.from_pydict(
        {name: _ARRAYS[COLUMNS[name]]([row.get(name) for row in rows]) for name in names}
    )


def storable(rows: Sequence[Row]) -> tuple[list[arrow.Table], list[tuple[Row, str]]]:
    """Tables of all rows that Arrow takes, and the others, each with the reason.

    `row_of` has checked them, so normally this is one table; halving finds what it let through.
    """
    try:
        return [table_of(rows)] if rows else [], []
    except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
        if len(rows) == 1:
            return [], [(rows[0], str(error))]
        half = len(rows) // 2
        left, bad_left = storable(rows[:half])
        right, bad_right = storable(rows[half:])
        return left + right, bad_left + bad_right


def _checked(name: str, kind: str, value: Any) -> Any:
    if value is None:
        return 0 if kind == MONEY else None
    return _CHECKS[kind](name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Unstorable(f"{name} is not text")
    return value


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -_MAX_INT <= value <= _MAX_INT:
        raise Unstorable(f"{name} is not a 64-bit integer")
    return value


def _float(name: str, value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unstorable(f"{name} is not a number")
    return float(value) if math.isfinite(value) else None


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unstorable(f"{name} is not true or false")
    return value


def _money(name: str, value: Any) -> int:
    nano = _integer(name, value)
    if abs(nano) > _MAX_NANO:
        raise Unstorable(f"{name} is beyond a thousand million USD")
    return nano


def _time(name: str, value: Any) -> int:
    micros = _integer(name, value)
    if not 0 <= micros <= _MAX_TS:
        raise Unstorable(f"{name} is no time between 1970 and 9999")
    return micros


def _json(_name: str, value: Any) -> str | None:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode() if value != {} else None


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    TEXT: _text, INTEGER: _integer, FLOAT: _float, BOOLEAN: _boolean, MONEY: _money,
    TIME: _time, JSON: _json,
}  # fmt: skip


def _strings(values: list[Any]) -> arrow.Array:
    return arrow.Array(values, arrow.DataType.string())


def _decimals(values: list[Any]) -> arrow.Array:
    texts = [None if nano is None else usd_text(nano) for nano in values]
    return arrow.Array(texts, arrow.DataType.string()).cast(arrow.DataType.decimal128(18, 9))


def _times(values: list[Any]) -> arrow.Array:
    micros = arrow.Array(values, arrow.DataType.int64())
    return micros.cast(arrow.DataType.timestamp("us", tz="UTC"))


def _days(values: list[Any]) -> arrow.Array:
    return arrow.Array(values, arrow.DataType.int32()).cast(arrow.DataType.date32())


_ARRAYS: dict[str, Callable[[list[Any]], arrow.Array]] = {
    TEXT: _strings, JSON: _strings, BODY: _strings, MONEY: _decimals, TIME: _times, DAY: _days,
    INTEGER: lambda values: arrow.Array(values, arrow.DataType.int64()),
    FLOAT: lambda values: arrow.Array(values, arrow.DataType.float64()),
    BOOLEAN: lambda values: arrow.Array(values, arrow.DataType.bool()),
}  # fmt: skip
