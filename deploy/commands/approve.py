"""`llmops approve`: leave for versions to become champion, where a spec says `approval: manual`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.promote import say
from deploy.commands.state import open_state

if TYPE_CHECKING:
    from evals.records import Verdict
    from pipelines.tables import ApprovalRow

app = typer.Typer(no_args_is_help=True)
ID = Annotated[str, typer.Argument(metavar="ID", help="the request")]
REASON = Annotated[str, typer.Option(help="for the audit trail")]


@app.command("list")
def list_(
    everything: Annotated[
        bool, typer.Option("--all", help="decided ones and void ones too")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="how many, the newest first")] = 20,
) -> None:
    """Requests that wait for a decision."""
    from pipelines.approval import OPEN, listed

    with open_state() as state, state.database.session() as session:
        rows = listed(session, None if everything else OPEN, limit)
    if not rows:
        typer.echo("nothing waits for leave here")
        return
    table = Table("id", "alias", "version", "state", "asked (UTC)", "because", box=None)
    for row in rows:
        asked = row.created_at.isoformat(" ", timespec="seconds").removesuffix("+00:00")
        version = f"{row.name}/{row.version}"
        table.add_row(row.approval_id, row.alias, version, row.state, asked, row.asked_for)
    print_table(table)


@app.command()
def show(approval_id: ID) -> None:
    """Who asks for what, on which evidence, and what became of it."""
    from evals.verdicts import find_verdict
    from pipelines.approval import find_approval, why_void

    with open_state() as state, state.database.session() as session:
        row = find_approval(session, approval_id)
        verdict = find_verdict(session, row.verdict_id) if row.verdict_id else None
        overtaken = why_void(session, row) if row.state == "open" else None
    _tell(row, verdict)
    if overtaken is not None:
        typer.echo(f"can no longer be granted: {overtaken}")


@app.command()
def grant(approval_id: ID, reason: REASON) -> None:
    """Make the version champion: loaded on every replica, then all of the alias's traffic."""
    from pipelines.approval import find_approval
    from pipelines.approval_orders import Order
    from pipelines.approval_orders import grant as grant_it
    from pipelines.engines import require_base, services_for

    with open_state() as state, looked_up():
        installation = installation_of(state)
        with state.database.session() as session:
            row = find_approval(session, approval_id)
        require_base(installation, row.alias, row.name, row.version)
        services = services_for(installation, row.alias)
        order = Order(approval_id, state.actor, reason)
        moved = asyncio.run(grant_it(services, order))
    say(row.alias, moved)


@app.command()
def refuse(approval_id: ID, reason: REASON) -> None:
    """Let the champion stay."""
    from pipelines.approval_orders import Order
    from pipelines.approval_orders import refuse as refuse_it

    with open_state() as state:
        row = refuse_it(state.database, Order(approval_id, state.actor, reason))
    typer.echo(f"approval {row.approval_id} on {row.alias} is {row.state}")


def _tell(row: "ApprovalRow", verdict: "Verdict | None") -> None:
    typer.echo(f"approval   {row.approval_id} on {row.alias}: {row.state}")
    typer.echo(f"version    {row.name}/{row.version}")
    asked = row.created_at.isoformat(timespec="seconds")
    typer.echo(f"asked      {asked} by {row.asked_by}: {row.asked_for}")
    if row.experiment_id is not None:
        typer.echo(f"experiment {row.experiment_id}")
    if verdict is not None:
        typer.echo(f"verdict    {verdict.verdict_id}: {verdict.decision}, {verdict.reasons[0]}")
    if row.ended_at is not None:
        ended = row.ended_at.isoformat(timespec="seconds")
        typer.echo(f"ended      {ended} by {row.decided_by}: {row.reason}")
    if row.promotion_id is not None:
        typer.echo(f"promotion  {row.promotion_id}")
