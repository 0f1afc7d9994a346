"""`llmops experiment`: try a model version on a share of an alias's users, watch it, stop it."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.state import open_state
from gateway.configuration import ConfigurationError

if TYPE_CHECKING:
    from pipelines.tables import ExperimentRow

app = typer.Typer(no_args_is_help=True)


@app.command()
def start(
    alias: Annotated[str, typer.Argument(help="whose traffic")],
    version: Annotated[
        str | None, typer.Argument(help="the candidate; none: the champion against itself (A/A)")
    ] = None,
    spec: Annotated[Path, typer.Option(help="spec with the plan")] = Path("extractor"),
    unjudged: Annotated[
        str | None, typer.Option(help="why a version without a passing verdict may be tried")
    ] = None,
) -> None:
    """Load the candidate on every replica, then give it its share. The controller decides."""
    from pipelines import experiment
    from pipelines.engines import services_for
    from pipelines.spec import load_spec

    with open_state() as state, looked_up():
        installation = installation_of(state)
        given = load_spec(spec)
        if given.alias != alias:
            raise ConfigurationError(
                f"alias: the spec {spec} is of {given.alias}, not of {alias}; see --spec"
            )
        trial = experiment.Trial(
            alias=alias,
            name=given.name,
            version=version,
            plan=given.experiment.settled(installation.configuration.feedback.metrics),
            actor=state.actor,
            unjudged=unjudged,
        )
        services = services_for(installation, alias)
        row = asyncio.run(experiment.start(services, trial))
    typer.echo(f"experiment {row.experiment_id} is under way on {alias}")
    typer.echo(f"see: llmops experiment status {alias}")


@app.command()
def status(
    alias: Annotated[str, typer.Argument(help="whose traffic")] = "extractor",
) -> None:
    """The latest experiments on an alias, and how the one under way stands."""
    from pipelines import experiment
    from pipelines.observations import Observations

    with open_state() as state, looked_up():
        installation = installation_of(state)
        rows = experiment.latest(state.database, alias)
        if not rows:
            installation.upstream_of(alias)
            typer.echo(f"there was no experiment on {alias} here")
            return
        table = Table("experiment", "version", "state", "started", "message")
        for row in rows:
            table.add_row(*_cells(row))
        print_table(table)
        for row in rows:
            if row.state == "running":
                observations = Observations(state.database, installation.reader, row)
                typer.echo(experiment.examine(row, observations).reason)


@app.command()
def stop(
    experiment_id: Annotated[str, typer.Argument(help="the experiment under way")],
    reason: Annotated[str, typer.Option(help="for the audit trail")],
) -> None:
    """End an experiment without a winner; everybody gets the champion."""
    from pipelines import experiment

    with open_state() as state, looked_up():
        row = experiment.stop(state.database, experiment_id, reason, state.actor)
    typer.echo(f"experiment {row.experiment_id} is {row.state}")


def _cells(row: "ExperimentRow") -> tuple[str, ...]:
    started = row.started_at.isoformat(timespec="seconds")
    message = escape(row.message or "")
    return row.experiment_id, row.version or "A/A", row.state, started, message
