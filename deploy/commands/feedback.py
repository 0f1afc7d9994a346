"""`llmops feedback …`: read feedback, and find out which never met its request."""

from datetime import timedelta
from typing import Annotated

import orjson
import typer

from deploy.commands.state import State, failed, open_state
from gateway.configuration import Configuration, load_configuration
from gateway.errors import NotFound
from gateway.feedback import FeedbackRecord, FeedbackStore
from gateway.feedback_check import check_pending
from gateway.key_fields import parse_duration
from gateway.request_log import LogReader, LogUnavailable

app = typer.Typer(help="Read and check feedback.", no_args_is_help=True)


@app.command()
def check(
    older_than: Annotated[
        str, typer.Option(help="how long feedback may wait for its request, such as 30m or 1d")
    ] = "1h",
) -> None:
    """Resolve pending feedback against the request log; list what never was resolved.

    Exit code 1 if a piece has waited for longer than --older-than.
    """
    with open_state() as state:
        configuration = load_configuration(state.settings.config_path)
        span: timedelta = parse_duration(older_than, "--older-than")
        reader = LogReader.open(state.settings, configuration.log)
        try:
            result = check_pending(_store(state, configuration), reader, older_than=span)
        except LogUnavailable as error:
            raise failed(str(error)) from error
    waiting, overdue = len(result.waiting), len(result.overdue)
    typer.echo(f"{result.resolved} resolved, {waiting} waiting, {overdue} overdue")
    for piece in result.overdue:
        typer.echo(describe(piece))
    if result.overdue:
        raise typer.Exit(1)


@app.command()
def show(
    identifier: Annotated[str, typer.Argument(help="a feedback_id, or a request's id")],
    tenant: Annotated[str, typer.Option(help="whose request it is")] = "default",
) -> None:
    """Print feedback as JSON: one piece, or all that was given on a request."""
    with open_state() as state:
        store = FeedbackStore(state.database, {})
        one = store.find(identifier)
        found = [one] if one is not None else store.for_reference(identifier, tenant)
        if not found:
            raise NotFound(f"there is no feedback {identifier!r}, nor any on such a request")
    for piece in found:
        typer.echo(orjson.dumps(piece.as_dict(), option=orjson.OPT_INDENT_2).decode())


@app.command()
def pending() -> None:
    """List the feedback whose request was not yet seen in the log, oldest first."""
    with open_state() as state:
        for piece in FeedbackStore(state.database, {}).pending():
            typer.echo(describe(piece))


def describe(piece: FeedbackRecord) -> str:
    """One line: id, time, tenant, metric and what it refers to."""
    target = piece.reference or f"episode {piece.episode_id}"
    when = piece.created_at.isoformat(timespec="seconds")
    return f"{piece.feedback_id}  {when}  {piece.tenant}  {piece.metric_name}  {target}"


def _store(state: State, configuration: Configuration) -> FeedbackStore:
    return FeedbackStore(state.database, configuration.feedback.metrics)
