"""`llmops down`: stop everything that `up` started, also after the keeper was killed."""

import typer
from rich.console import Console

from deploy.local import take_down
from gateway.settings import load_settings

app = typer.Typer()


@app.command()
def down() -> None:
    """Stop the stack: the gateway drains first. Nothing of it is left running."""
    console = Console()
    settings = load_settings()
    count = take_down(settings.home, lambda text: console.print(text, highlight=False))
    words = f"stopped {count} processes" if count else f"nothing runs in {settings.home}"
    console.print(words, highlight=False, soft_wrap=True)
