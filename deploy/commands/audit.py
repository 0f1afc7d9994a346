"""`llmops audit`: who changed what, when and why."""

from typing import Annotated

import orjson
import typer
from rich.table import Column, Table

from deploy.commands.listing import print_table
from deploy.commands.state import open_state
from gateway.audit import AuditEntry, AuditFilter, entries

SECONDS = "seconds"


app = typer.Typer()


@app.command()
def audit(
    subject: Annotated[str | None, typer.Option(help="such as key:0192… or team:…")] = None,
    action: Annotated[str | None, typer.Option(help="such as key.block")] = None,
    actor: Annotated[str | None, typer.Option(help="such as cli:anna")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """The newest rows of the audit trail."""
    wanted = AuditFilter(subject=subject, action=action, actor=actor, limit=limit)
    with open_state() as state, state.database.session() as session:
        found = entries(session, wanted)
    if as_json:
        for entry in found:
            typer.echo(orjson.dumps(entry.as_dict()).decode())
        return
    table = Table(
        "when (UTC)",
        "actor",
        "action",
        Column("subject", no_wrap=True),
        "changed",
        "reason",
        box=None,
    )
    for entry in found:
        change = entry.change
        when = entry.ts.isoformat(" ", timespec=SECONDS).removesuffix("+00:00")
        table.add_row(
            when, change.actor, change.action, change.subject, changes(entry), change.reason
        )
    print_table(table)


def changes(entry: AuditEntry) -> str:
    """Names of the fields that a change touched, with their new values."""
    before, after = entry.change.before, entry.change.after
    if before is None or after is None:
        return ""
    return ", ".join(
        f"{name}={value}" for name, value in after.items() if before.get(name) != value
    )
