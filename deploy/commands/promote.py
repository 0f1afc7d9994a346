"""`llmops promote`: make a model version the champion of an alias, without an experiment."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.state import open_state

if TYPE_CHECKING:
    from pipelines.promotion import Moved

app = typer.Typer()


@app.command("promote")
def promote(
    alias: Annotated[str, typer.Argument(help="whose traffic")],
    version: Annotated[str, typer.Argument(help="the model version")],
    reason: Annotated[str, typer.Option(help="for the audit trail")],
    name: Annotated[
        str | None, typer.Option(help="registered model; the alias's own name by default")
    ] = None,
    unjudged: Annotated[
        str | None, typer.Option(help="why a version without a passing verdict is promoted")
    ] = None,
) -> None:
    """Give all of an alias's traffic to a version whose lineage is complete."""
    from pipelines import promotion
    from pipelines.engines import require_base, services_for

    with open_state() as state, looked_up():
        installation = installation_of(state)
        services = services_for(installation, alias)
        require_base(installation, alias, name or alias, version)
        order = promotion.Promotion(alias, name or alias, version, state.actor, reason, unjudged)
        moved = asyncio.run(promotion.promote(services, order))
    say(alias, moved)


def say(alias: str, moved: "Moved") -> None:
    """What an order came to, in lines."""
    answers = moved.adapter or "the base model"
    if moved.repeated:
        typer.echo(f"nothing changed: {alias} is answered by {answers}")
    else:
        typer.echo(f"{alias} is answered by {answers}")
    if moved.promotion is not None:
        state = "MLflow's aliases follow" if moved.promotion.state == "moving" else "done"
        typer.echo(f"{moved.promotion.kind} {moved.promotion.promotion_id}: {state}")
    if moved.stopped is not None:
        typer.echo(f"experiment {moved.stopped} was stopped")
    if moved.note is not None:
        typer.echo(moved.note)
