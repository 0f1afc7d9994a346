"""`llmops logs-of NAME`: the output of a part, or of the keeper."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gateway.settings import load_settings

app = typer.Typer()
POLL_SECONDS = 0.2


@app.command()
def logs_of(
    name: Annotated[str, typer.Argument(help="A part (gateway, engine, …) or a process of it.")],
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show the output of a part."""
    console = Console()
    folder = load_settings().home / "logs"
    files = log_files(folder, name)
    if not files:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none yet"
        console.print(f"no output of {name!r} (there are: {known})", highlight=False)
        raise typer.Exit(1)
    for file in files:
        for line in file.read_text(errors="replace").splitlines()[-lines:]:
            typer.echo(f"{file.stem}: {line}" if len(files) > 1 else line)
    if follow:
        _follow(files)


def log_files(folder: Path, name: str) -> list[Path]:
    """The log of process `name`, or those of all processes of part `name`."""
    own = folder / f"{name}.log"
    copies = sorted(folder.glob(f"{name}-[0-9]*.log"))
    found = [own, *copies] if Path(name).name == name else []
    return [path for path in found if path.is_file()]


def _follow(files: list[Path]) -> None:
    tails = [(file, _new_text(file)) for file in files]
    try:
        while True:
            for _, text in tails:
                typer.echo(next(text), nl=False)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return


def _new_text(path: Path) -> Iterator[str]:
    """What was added since the last call; a rotated file is read from its new beginning."""
    position = path.stat().st_size
    while True:
        size = path.stat().st_size if path.exists() else 0
        position = 0 if size < position else position
        with path.open("rb") as file:
            file.seek(position)
            added = file.read()
        position += len(added)
        yield added.decode(errors="replace")
