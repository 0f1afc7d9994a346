"""`llmops logs`: read the request log, and keep it small and lawful."""

import csv
import hashlib
import io
import time
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Column, Table

from deploy.commands.state import failed, open_state
from gateway.configuration import Configuration, ConfigurationError, load_configuration
from gateway.costs import BadSince, since_time
from gateway.orders import Order, Outcome
from gateway.request_log import LogReader, QueryRefused, Result, presented
from gateway.settings import Settings, load_settings

POLL_SECONDS = 0.5
LATE_SECONDS = 900
TAIL_COLUMNS = (
    "ts", "request_id", "key_id", "tenant", "model", "status", "http_status", "input_tokens",
    "output_tokens", "cost_usd", "latency_ms",
)  # fmt: skip
TAIL_WIDTH = 150
CELL_WIDTH = 60
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
app = typer.Typer(help="Read and keep the request log.", no_args_is_help=True)


class Form(StrEnum):
    """How `logs query` prints rows."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class FileForm(StrEnum):
    """What `logs export` writes."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command()
def tail(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as requests end")] = False,
    number: Annotated[int, typer.Option("-n", min=1, max=100_000)] = 20,
) -> None:
    """The newest requests, one line each."""
    reader = _reader()
    rows = reader.rows(columns=TAIL_COLUMNS, limit=number)[::-1]
    console = Console(width=max(Console().width, TAIL_WIDTH))
    _print_tail(console, rows, header=True)
    seen = {row["request_id"] for row in rows}
    newest = max((row["ts"] for row in reader.rows(columns=("ts",), limit=1)), default=None)
    try:
        while follow:
            time.sleep(POLL_SECONDS)
            start = int((time.time() - LATE_SECONDS) * 1_000_000)
            condition = "ts >= make_timestamptz(?)"
            found = reader.rows(condition, [start], columns=TAIL_COLUMNS, order="ts")
            if newest is not None:  # what was there before and is not shown, was not asked for
                seen |= {row["request_id"] for row in found if row["ts"] <= newest}
                newest = None
            fresh = [row for row in found if row["request_id"] not in seen]
            seen |= {row["request_id"] for row in fresh}
            _print_tail(console, fresh, header=False)
    except KeyboardInterrupt:
        return


@app.command()
def show(
    identifier: Annotated[
        str, typer.Argument(metavar="ID", help="request id, chatcmpl-… id or the upstream's id")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """The whole record of one request, with both bodies."""
    row = _reader().row(identifier)
    if row is None:
        raise failed(f"no request {identifier!r} in the log; llmops logs tail shows the newest")
    values = presented(row)
    if as_json:
        typer.echo(orjson.dumps(values, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console()
    bodies = {name: values.pop(name) for name in ("contexts", "request", "response")}
    table = Table(Column("", style="bold"), Column("", overflow="fold"), box=None)
    for name, value in values.items():
        if value is not None:
            table.add_row(name, _plain(value))
    console.print(table)
    for name, body in bodies.items():
        if body is None:
            continue
        console.print(f"\n[bold]{name}[/bold]")
        if isinstance(body, str):
            console.print(body, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print_json(data=body)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="a SELECT over requests")],
    form: Annotated[Form, typer.Option("--format")] = Form.TABLE,
    limit: Annotated[int, typer.Option(min=1, help="rows at most")] = 10_000,
) -> None:
    """Run a SELECT over the view `requests`. It cannot change or open anything else."""
    try:
        result = _reader().query(sql, limit=limit)
    except QueryRefused as error:
        raise failed(str(error)) from error
    if form is Form.TABLE:
        _print_table(result)
    elif form is Form.JSON:
        rows = [{k: _jsonable(v) for k, v in row.items()} for row in result.dicts()]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2, default=str).decode())
    else:
        typer.echo(csv_text(result), nl=False)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="the file to write")],
    since: Annotated[str | None, typer.Option(help="7d, 24h or a date; all by default")] = None,
    form: Annotated[FileForm, typer.Option("--format")] = FileForm.JSONL,
) -> None:
    """Write the log to a file, with bodies, oldest first."""
    start = None if since is None else _since(since)
    count = _reader().export(out, form.value, start)
    typer.echo(f"{count} requests written to {out}")


@app.command()
def compact() -> None:
    """Merge the table's small files."""
    done = _carry_out(Order("compact"))
    typer.echo(f"{done['files_merged']} files merged, {done['files_removed']} removed")


@app.command()
def retain() -> None:
    """Apply the configured ages of bodies and rows now (the shipper does it every hour)."""
    done = _carry_out(Order("retain"))
    typer.echo(
        f"{done['rows_deleted']} rows deleted, bodies of {done['bodies_cleared']} rows cleared,"
        f" {done['files_removed']} files removed"
    )


@app.command()
def erase(
    user: Annotated[str, typer.Option(help="the `user` of the requests")],
    delete_rows: Annotated[
        bool, typer.Option(help="remove the rows; else tokens and money stay, without identity")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Forget a user: bodies and identity, in the table, its old files and the spool."""
    if not yes:
        typer.confirm(f"Erase everything that user {user!r} sent until now?", abort=True)
    before = time.time_ns() // 1000
    feedback = _erase_feedback(user)
    done = _carry_out(Order("erase", user=user, before=before, delete_rows=delete_rows))
    _audit(user, done)
    what = "deleted" if delete_rows else "cleared of bodies and identity"
    typer.echo(
        f"{done['rows']} rows {what} by {done['by']}, {done['files_removed']} files removed,"
        f" {done['quarantined']} quarantined records dropped, {feedback} feedback entries removed"
    )
    if isinstance(done["spans"], str):
        typer.secho(f"spans: {done['spans']}; erase again when it is back", fg="yellow", err=True)
    typer.echo("requests still under way are cleared as they are logged, for a day from now")


def csv_text(result: Result) -> str:
    """Rows as CSV; a cell that a spreadsheet would run as a formula is made text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([_cell(name) for name in result.columns])
    writer.writerows([_cell(value) for value in row] for row in result.rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if value is None or isinstance(value, int | float):
        return value
    text = _plain(_jsonable(value))
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _jsonable(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else value


def _plain(value: Any) -> str:
    if isinstance(value, dict | list):
        return orjson.dumps(value, default=str).decode()
    return str(value)


def _print_table(result: Result) -> None:
    table = Table(*(Column(name, overflow="fold") for name in result.columns), box=None)
    for row in result.rows:
        table.add_row(*("" if value is None else _plain(_jsonable(value)) for value in row))
    console = Console()
    width = console.width if console.is_terminal else CELL_WIDTH * max(len(result.columns), 1)
    console.print(table, width=max(width, console.width), crop=False)
    typer.echo(f"{len(result.rows)} rows")


def _print_tail(console: Console, rows: list[dict[str, Any]], *, header: bool) -> None:
    table = Table(box=None, show_header=header, header_style="bold", pad_edge=False)
    for name, width in (("time (UTC)", 12), ("id", 36), ("key", 8), ("tenant", 10)):
        table.add_column(name, min_width=width, no_wrap=True)
    table.add_column("model", min_width=12)
    table.add_column("status", min_width=9)
    for name, width in (("in", 6), ("out", 6), ("cost USD", 12), ("ms", 8)):
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    for row in rows:
        table.add_row(*_tail_cells(row))
    if rows or header:
        console.print(table, soft_wrap=True)


def _tail_cells(row: dict[str, Any]) -> list[str]:
    status = row["status"] if row["status"] == "ok" else f"{row['status']} {row['http_status']}"
    latency = row["latency_ms"]
    return [
        row["ts"].strftime("%H:%M:%S.%f")[:12],
        row["request_id"],
        (row["key_id"] or "-")[-8:],
        row["tenant"] or "-",
        row["model"] or "-",
        status,
        "-" if row["input_tokens"] is None else str(row["input_tokens"]),
        "-" if row["output_tokens"] is None else str(row["output_tokens"]),
        f"{row['cost_usd']:f}",
        "-" if latency is None else f"{latency:.0f}",
    ]


def _since(text: str) -> datetime:
    try:
        return since_time(text)
    except BadSince as error:
        raise failed(str(error)) from error


def _configured() -> tuple[Settings, Configuration]:
    settings = load_settings()
    try:
        return settings, load_configuration(settings.config_path)
    except ConfigurationError as error:
        raise failed(str(error)) from error


def _reader() -> LogReader:
    settings, configuration = _configured()
    return LogReader.open(settings, configuration.log)


def _carry_out(order: Order) -> Outcome:
    settings, configuration = _configured()
    try:
        from gateway.log_work import WAIT_SECONDS, carry_out
    except ImportError as error:
        raise failed(f"the log table needs the extra llmops[log]: {error}") from error
    try:
        return carry_out(order, settings, configuration, seconds=WAIT_SECONDS)
    except (OSError, RuntimeError) as error:
        raise failed(str(error)) from error


def _erase_feedback(user: str) -> int:
    """Remove what was said of the user's requests: comments and corrections are theirs too."""
    from gateway.feedback import FeedbackStore

    found = _reader().select(
        'SELECT request_id, upstream_id FROM requests WHERE "user" = ?', [user]
    )
    named = [identifier for row in found.rows for identifier in row if identifier]
    with open_state() as state:
        return FeedbackStore(state.database, {}).erase_on(named)


def _audit(user: str, done: Outcome) -> None:
    """The trail says that it was done, and knows the user only by a digest."""
    from gateway.audit import Change, record

    digest = hashlib.sha256(user.encode()).hexdigest()[:16]
    with open_state() as state, state.database.transaction() as session:
        change = Change(state.actor, "log.erase", f"user-sha256:{digest}", evidence=done)
        record(session, change)
