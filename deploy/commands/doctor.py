"""`llmops doctor`: look at everything that a start needs and say what to do where it lacks."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy import configuration_file
from deploy.keeper import Keeper
from deploy.parts import parts_of
from deploy.preflight import Finding, inspect
from deploy.stack import load_stack
from gateway.configuration import ConfigurationError
from gateway.settings import Settings, load_settings

app = typer.Typer()


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option(help="Configuration file to look at.")] = None,
) -> None:
    """Check packages, engine, memory, disk, ports and configuration. Exit code 1 if one lacks."""
    findings = examine(load_settings(), config)
    table = Table("", "subject", "found", "what to do", box=None)
    for finding in findings:
        mark = "[green]good[/]" if finding.good else "[red]lacks[/]"
        table.add_row(mark, *map(escape, (finding.subject, finding.what, finding.remedy)))
    Console().print(table)
    raise typer.Exit(0 if all(finding.good for finding in findings) else 1)


def examine(settings: Settings, config: Path | None) -> list[Finding]:
    """Everything that was looked at, without changing anything."""
    version = ".".join(str(number) for number in sys.version_info[:3])
    findings = [Finding("python", sys.version_info >= (3, 11), version, "")]
    running = Keeper(settings.home).running()
    findings.append(Finding("stack", True, "up" if running else "down"))
    try:
        path = configuration_file.in_force(settings, config, make=False)
        configuration, stack = load_stack(path)
    except ConfigurationError as error:
        return [*findings, Finding("configuration", False, str(error), "mend the file")]
    findings.append(Finding("configuration", True, str(path)))
    parts = parts_of(configuration, stack, settings)
    return findings + inspect(parts, settings.home, ports=not running)
