"""`llmops costs`: what the requests cost, and how that compares with the node's hours."""

import time
from dataclasses import replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gateway.configuration import ConfigurationError, load_configuration
from gateway.costs import (
    BadSince,
    CostLine,
    UnknownDimension,
    costs,
    hours_between,
    reconcile,
    self_hosted,
    since_time,
    total,
)
from gateway.request_log import LogReader
from gateway.settings import Settings, load_settings

ENGINE = "engine"
TABLE_WIDTH = 140
app = typer.Typer(help="What the logged requests cost.", invoke_without_command=True)

Since = Annotated[str | None, typer.Option(help="a span such as 7d or 24h, or a date")]


@app.callback()
def show(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(help="model, team, key, prompt, user, tenant, target or day")
    ] = "model",
    since: Since = None,
    top: Annotated[int, typer.Option(min=1, help="lines at most; the rest in one")] = 50,
) -> None:
    """Sums of tokens and money, dearest first."""
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    start = _since(since)
    try:
        lines = costs(_reader(settings), by=by, since=start)
    except UnknownDimension as error:
        raise typer.BadParameter(str(error)) from error
    table = Table(box=None, header_style="bold")
    table.add_column(by, no_wrap=True)
    for name in ("requests", "input", "cached", "output", "reasoning", "cost USD", "saved USD"):
        table.add_column(name, justify="right", no_wrap=True)
    rest = lines[top:]
    others = [replace(total(rest), name=f"({len(rest)} others)")] if rest else []
    for line in [*lines[:top], *others, total(lines)]:
        table.add_row(*_cells(line))
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)


@app.command("reconcile")
def compare(
    since: Since = None,
    node_hours: Annotated[
        list[str] | None,
        typer.Option(help="hours that were paid for: H, or UPSTREAM=H; by default the uptime"),
    ] = None,
) -> None:
    """Set what was booked for self-hosted models against the hours of their nodes."""
    settings = load_settings()
    try:
        configuration = load_configuration(settings.config_path)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from error
    start = _since(since)
    upstreams = list(self_hosted(configuration))
    hours = dict.fromkeys(upstreams, Decimal(0))
    if node_hours:
        hours |= _given_hours(node_hours, upstreams)
    else:
        hours = dict.fromkeys(upstreams, _uptime_hours(settings, start))
    lines = reconcile(_reader(settings), configuration, node_hours=hours, since=start)
    table = Table(box=None, header_style="bold")
    table.add_column("upstream")
    table.add_column("")
    for name in ("requests", "hours", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(line.upstream, "node", "", f"{line.node_hours:f}", f"{line.node_usd:f}")
        models = ", ".join(line.models)
        table.add_row("", f"booked: {models}", str(line.requests), "", f"{line.booked_usd:f}")
        table.add_row("", "idle", "", "", f"{line.idle_usd:f}")
    if not lines:
        typer.echo("no model is self-hosted: nothing to reconcile")
        return
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)


def _cells(line: CostLine) -> list[str]:
    counts = (line.requests, line.input_tokens, line.cached_tokens, line.output_tokens)
    return [
        line.name if line.name is not None else "-",
        *map(str, counts),
        str(line.reasoning_tokens),
        f"{line.cost_usd:f}",
        f"{line.saved_usd:f}",
    ]


def _since(text: str | None) -> datetime | None:
    try:
        return None if text is None else since_time(text)
    except BadSince as error:
        raise typer.BadParameter(str(error)) from error


def _reader(settings: Settings) -> LogReader:
    return LogReader.open(settings, load_configuration(settings.config_path).log)


def _given_hours(given: list[str], upstreams: list[str]) -> dict[str, Decimal]:
    hours: dict[str, Decimal] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = Decimal(number)
        except InvalidOperation as error:
            raise typer.BadParameter(f"{text!r}: give H or UPSTREAM=H") from error
        if name and name not in upstreams:
            raise typer.BadParameter(f"{name!r} has no self-hosted model")
        hours |= {name: value} if name else dict.fromkeys(upstreams, value)
    return hours


def _uptime_hours(settings: Settings, since: datetime | None) -> Decimal:
    from deploy.uptime import intervals, read_signs

    now = time.time_ns() // 1000
    spans = [
        (interval.start, now if interval.end is None else interval.end)
        for interval in intervals(read_signs(settings.home / "run"))
        if interval.part == ENGINE
    ]
    return hours_between(spans, since)
