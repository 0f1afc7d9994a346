"""`llmops status`: each part, its processes and its health."""

import time

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.health import probe
from deploy.keeper import Keeper, ProcessState
from deploy.leftovers import leftovers
from deploy.parts import Part, parts_of
from deploy.stack import load_stack
from gateway.configuration import ConfigurationError
from gateway.settings import load_settings

app = typer.Typer()


@app.command()
def status() -> None:
    """Show each part. Exit code 1 if something is not healthy, 3 if nothing runs."""
    console = Console()
    settings = load_settings()
    keeper = Keeper(settings.home)
    if not keeper.running():
        left = leftovers(settings.home)
        words = f"the stack in {settings.home} is down"
        if left:
            words += f", but {len(left)} of its processes still run: end them with llmops down"
        console.print(words, highlight=False, soft_wrap=True)
        raise typer.Exit(1 if left else 3)
    try:
        configuration, stack = load_stack(settings.config_path)
    except ConfigurationError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    parts = {part.name: part for part in parts_of(configuration, stack, settings)}
    table = Table("part", "process", "state", "health", "pid", "up", "address", box=None)
    healthy = True
    for state in keeper.states():
        part = parts.get(state.part)
        trouble = _trouble(state, part)
        healthy = healthy and trouble is None
        table.add_row(*_row(state, part, trouble))
    console.print(table)
    raise typer.Exit(0 if healthy else 1)


def _trouble(state: ProcessState, part: Part | None) -> str | None:
    if state.state not in ("STARTING", "RUNNING"):
        return state.trouble or state.state.lower()
    return probe(part.check) if part is not None else None


def _row(state: ProcessState, part: Part | None, trouble: str | None) -> tuple[str, ...]:
    alive = state.state in ("STARTING", "RUNNING")
    return (
        state.part,
        state.name,
        state.state.lower(),
        "[green]healthy[/]" if trouble is None else f"[red]{escape(trouble)}[/]",
        str(state.pid or ""),
        f"{time.time() - state.since:.0f} s" if alive else "",
        (part.url if part else None) or "",
    )
