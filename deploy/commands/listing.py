"""A table on standard output: as wide as it likes where no terminal cuts it."""

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 400


def print_table(table: Table) -> None:
    """Print `table`."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table)
