"""`llmops rollback`: go back to the champion before this one, at once."""

import asyncio
from typing import Annotated

import typer

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.promote import say
from deploy.commands.state import open_state

app = typer.Typer()


@app.command("rollback")
def rollback(
    alias: Annotated[str, typer.Argument(help="whose traffic")],
    reason: Annotated[str, typer.Option(help="for the audit trail")],
    from_version: Annotated[
        str | None, typer.Option(help="only if this version is the champion still")
    ] = None,
    accept_base: Annotated[
        bool, typer.Option(help="the base model, if the champion before cannot be loaded")
    ] = False,
) -> None:
    """Move an alias back to its former champion; an experiment under way is stopped."""
    from pipelines import promotion
    from pipelines.engines import services_for

    with open_state() as state, looked_up():
        installation = installation_of(state)
        services = services_for(installation, alias)
        order = promotion.Rollback(alias, state.actor, reason, from_version, accept_base)
        moved = asyncio.run(promotion.rollback(services, order))
    say(alias, moved)
