"""`llmops keys teams …`: what a group of keys may use at most."""

from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.table import Column, Table

from deploy.commands.listing import print_table
from deploy.commands.state import open_state
from gateway.key_fields import TeamFields
from gateway.teams import TeamRecord

TeamName = Annotated[str, typer.Argument(help="team_id or alias")]
Reason = Annotated[str | None, typer.Option(help="why, for the audit trail")]
Models = Annotated[list[str] | None, typer.Option("--model", help="allowed model; repeat it")]
Tenant = Annotated[str | None, typer.Option()]


app = typer.Typer(help="Teams.", no_args_is_help=True)


@app.command()
def new(
    alias: Annotated[str, typer.Argument(help="its name")],
    tenant: Tenant = None,
    model: Models = None,
    reason: Reason = None,
) -> None:
    """Make a team."""
    with open_state() as state:
        fields = TeamFields(alias=alias, tenant=tenant, models=model or [])
        show(state.keys.team_new(actor=state.actor, reason=reason, **fields))


@app.command("list")
def listing(tenant: Tenant = None) -> None:
    """Teams that are not deleted."""
    with open_state() as state:
        found = state.keys.team_list(tenant=tenant)
    table = Table(Column("team_id", no_wrap=True), "alias", "tenant", "models", "blocked", box=None)
    for team in found:
        models = ", ".join(team.models) or "all"
        table.add_row(team.team_id, team.alias, team.tenant, models, "yes" if team.blocked else "")
    print_table(table)


@app.command()
def info(team: TeamName) -> None:
    """Everything that is known of a team, as JSON."""
    with open_state() as state:
        show(state.keys.team_info(team))


@app.command()
def update(
    team: TeamName,
    alias: Annotated[str | None, typer.Option()] = None,
    model: Models = None,
    every_model: Annotated[bool, typer.Option(help="lift the restriction to models")] = False,
    blocked: Annotated[bool | None, typer.Option("--block/--unblock")] = None,
    reason: Reason = None,
) -> None:
    """Change what is given; the team's keys follow."""
    fields = TeamFields()
    if alias is not None:
        fields["alias"] = alias
    if model or every_model:
        fields["models"] = [] if every_model else model or []
    if blocked is not None:
        fields["blocked"] = blocked
    with open_state() as state:
        show(state.keys.team_update(team, actor=state.actor, reason=reason, **fields))


@app.command()
def delete(team: TeamName, reason: Reason = None) -> None:
    """Delete a team and every key of it, for good."""
    with open_state() as state:
        show(state.keys.team_delete(team, actor=state.actor, reason=reason))


def show(record: TeamRecord) -> None:
    """Print a team as JSON."""
    typer.echo(orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2).decode())
