"""`llmops reproduce`: a former run done again from its commit, its data set and its spec."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.state import open_state

if TYPE_CHECKING:
    from pipelines.reproduction import Reproduction

app = typer.Typer()


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="a run, as in: llmops train status NAME")],
    tolerance: Annotated[
        float, typer.Option(min=0, help="by what share a figure may differ")
    ] = 1e-6,
) -> None:
    """Train and measure again in a clone at the run's commit, and compare with what is recorded.

    Exit code 0 if every figure is the same within the tolerance, 1 if not.
    """
    from pipelines.reproduction import reproduce as do_again

    with (
        open_state() as state,
        looked_up(),
        tempfile.TemporaryDirectory(prefix="llmops-reproduce-") as scratch,
    ):

        def show(percent: int, what: str) -> None:
            if percent in (0, 10):
                typer.echo(what)

        found = do_again(installation_of(state), run, Path(scratch), show)
    _print(found, tolerance)
    if found.different(tolerance):
        raise typer.Exit(1)


def _print(found: "Reproduction", tolerance: float) -> None:
    title = f"run {found.run_id} at {found.commit[:12]}, data set {found.dataset_id}"
    table = Table("figure", "recorded", "again", "", title=title)
    for one in found.figures:
        shown = ["-" if value is None else f"{value:.9g}" for value in (one.recorded, one.again)]
        word = "same" if one.same(tolerance) else "differs"
        table.add_row(one.name, *shown, "of the machine" if one.of_the_machine else word)
    print_table(table)
    if found.unmeasured is not None:
        typer.echo(f"not measured again: {found.unmeasured}")
    different = found.different(tolerance)
    learnt = "to the last bit" if found.identical else "but other parameters were learnt"
    if not different:
        typer.echo(f"the same within {tolerance:g}: {learnt}")
        return
    typer.echo(f"{len(different)} figures differ by more than {tolerance:g}")
    for said in found.inputs or ("no input is known to be another: it is not deterministic",):
        typer.echo(f"  {said}")
