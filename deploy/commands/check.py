"""`llmops check [FILE]`: validate a configuration without using it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.stack import load_stack
from gateway.configuration import ConfigurationError
from gateway.prices import UNPRICED, PriceTable
from gateway.settings import load_settings

app = typer.Typer()


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="By default the file in force.")] = None,
) -> None:
    """Name every wrong key by its path; exit code 1 if there is one."""
    from deploy.owned_sections import require_owned  # takes a while

    console = Console(highlight=False, soft_wrap=True, markup=False)
    settings = load_settings()
    path = file or settings.config_path
    try:
        configuration, _ = load_stack(path)
        require_owned(configuration, str(path))
    except ConfigurationError as error:
        console.print(str(error))
        raise typer.Exit(1) from error
    missing = [
        f"{path}: upstreams.{name}.api_key_env: {upstream.api_key_env} is not set here"
        for name, upstream in configuration.upstreams.items()
        if upstream.api_key_env and settings.secret_value(upstream.api_key_env) is None
    ]
    table = PriceTable(configuration)
    missing += [
        f"{path}: models.{alias} has no price: its requests are booked with 0"
        for alias in configuration.models
        if table.rates(alias, alias).version.startswith(UNPRICED)
    ]
    for line in missing:
        console.print(f"warning: {line}")
    console.print(f"{path}: good ({configuration.config_hash})")
