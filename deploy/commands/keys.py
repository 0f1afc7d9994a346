"""`llmops keys …`: virtual keys, straight in the state database; every worker follows in 1 s."""

from dataclasses import asdict
from typing import Annotated, Any, cast

import orjson
import typer
from rich.table import Column, Table

from deploy.commands import teams
from deploy.commands.listing import print_table
from deploy.commands.state import failed, open_state
from gateway.key_fields import KeyFields
from gateway.keys import KeyFilter, KeyRecord

KeyName = Annotated[str, typer.Argument(help="key_id, digest, or the key itself")]
Reason = Annotated[str | None, typer.Option(help="why, for the audit trail")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Alias = Annotated[str | None, typer.Option(help="a name for people")]
Team = Annotated[str | None, typer.Option(help="team_id or alias")]
Tenant = Annotated[str | None, typer.Option(help="the team's, else `default`")]
User = Annotated[str | None, typer.Option(help="whose key it is")]
Models = Annotated[list[str] | None, typer.Option("--model", help="allowed model; repeat it")]
Duration = Annotated[str | None, typer.Option(help="valid for, such as 12h or 30d; -1: for ever")]
Fields = Annotated[
    str | None, typer.Option(help='further fields, JSON: {"metadata": {…}, "bodies": "off", …}')
]


app = typer.Typer(help="Virtual keys and teams.", no_args_is_help=True)
app.add_typer(teams.app, name="teams")


@app.command()
def generate(  # noqa: PLR0913 - one parameter for each option
    alias: Alias = None,
    team: Team = None,
    tenant: Tenant = None,
    user: User = None,
    model: Models = None,
    duration: Duration = None,
    fields: Fields = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed once and stored nowhere."""
    given = key_fields(fields, alias=alias, team_id=team, tenant=tenant, user_id=user)
    given |= key_fields(None, models=model or None, duration=duration)
    with open_state() as state:
        key, made = state.keys.generate(actor=state.actor, reason=reason, **cast(KeyFields, given))
        record = state.keys.info(made.key_id)
    if as_json:
        typer.echo(orjson.dumps({"key": key, **asdict(record)}).decode())
        return
    typer.echo(key)
    typer.echo(f"key_id {record.key_id}, tenant {record.tenant}, {until(record)}", err=True)


@app.command("list")
def listing(
    team: Team = None, tenant: Tenant = None, user: User = None, as_json: AsJson = False
) -> None:
    """Keys that are not deleted, newest first."""
    with open_state() as state:
        team_id = state.keys.team_info(team).team_id if team else None
        wanted = KeyFilter(tenant=tenant, team_id=team_id, user_id=user)
        found = state.keys.list(wanted, limit=100_000)
    if as_json:
        for record in found:
            typer.echo(orjson.dumps(asdict(record)).decode())
        return
    table = Table(
        Column("key_id", no_wrap=True),
        "key",
        "alias",
        "tenant",
        "team",
        "models",
        "state",
        box=None,
    )
    for record in found:
        models = ", ".join(record.models) or "all"
        table.add_row(
            record.key_id, record.hint, record.alias, record.tenant, record.team_id, models,
            until(record),
        )  # fmt: skip
    print_table(table)


@app.command()
def info(key: KeyName) -> None:
    """Everything that is known of a key, as JSON."""
    with open_state() as state:
        show(state.keys.info(key))


@app.command()
def update(  # noqa: PLR0913 - one parameter for each option
    key: KeyName,
    alias: Alias = None,
    team: Team = None,
    user: User = None,
    model: Models = None,
    duration: Duration = None,
    fields: Fields = None,
    reason: Reason = None,
) -> None:
    """Change what is given."""
    given = key_fields(fields, alias=alias, team_id=team, user_id=user)
    given |= key_fields(None, models=model or None, duration=duration)
    with open_state() as state:
        changed = cast(KeyFields, given)
        show(state.keys.update(key, actor=state.actor, reason=reason, **changed))


@app.command()
def block(key: KeyName, reason: Reason = None) -> None:
    """Refuse a key until it is unblocked."""
    with open_state() as state:
        show(state.keys.block(key, actor=state.actor, reason=reason))


@app.command()
def unblock(key: KeyName, reason: Reason = None) -> None:
    """Take a blocked key again."""
    with open_state() as state:
        show(state.keys.unblock(key, actor=state.actor, reason=reason))


@app.command()
def delete(key: KeyName, reason: Reason = None) -> None:
    """Refuse a key for good."""
    with open_state() as state:
        show(state.keys.delete(key, actor=state.actor, reason=reason))


def show(record: KeyRecord) -> None:
    """Print a key as JSON."""
    typer.echo(orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2).decode())


def until(record: KeyRecord) -> str:
    """Whether a key is taken, and for how long."""
    if record.blocked:
        return "blocked"
    return f"until {record.expires_at[:16]}" if record.expires_at else "never expires"


def key_fields(text: str | None, **options: Any) -> dict[str, Any]:
    """The options that were given, over the JSON object `text`."""
    try:
        fields = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise failed(f"--fields is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise failed("--fields: expected a JSON object")
    fields |= {name: value for name, value in options.items() if value is not None}
    if fields.get("duration") == "-1":
        fields["duration"] = None
    return fields
