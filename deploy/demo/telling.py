"""The demo's live output: a heading for every act, progress while it runs.

On a terminal progress is a bar that is drawn in place; elsewhere it is a plain line now and then.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.text import Text

from deploy.demo.account import Expectation
from deploy.demo.stage import Show, Step

PLAIN_SECONDS = 5.0
PIPED_WIDTH = 120


class Teller:
    """Writes to one console."""

    def __init__(self, console: Console):
        self.console = console
        if not console.is_terminal:
            console.width = PIPED_WIDTH

    def heading(self, text: str) -> None:
        """The heading of an act."""
        self.console.print()
        self.console.print(Rule(Text(text, style="bold"), align="left"))

    def line(self, text: str, style: str = "") -> None:
        """One line, as it is."""
        self.console.print(Text(text, style=style))

    def show(self, what: RenderableType) -> None:
        """A table or another drawing."""
        self.console.print(what)

    def outcome(self, expectation: Expectation) -> None:
        """Whether something came as was expected."""
        mark = Text("✓ ", "green") if expectation.met else Text("✗ ", "bold red")
        self.console.print(mark + Text(expectation.text) + Text(f": {expectation.measured}", "dim"))

    @contextmanager
    def progress(self) -> Iterator[Show]:
        """Something that shows steps until the end of the block."""
        if not self.console.is_terminal:
            yield _Lines(self.console).show
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        with Progress(*columns, console=self.console) as bars:
            yield _Bars(bars).show


class _Bars:
    """One bar for every label."""

    def __init__(self, bars: Progress):
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def show(self, step: Step) -> None:
        if step.label not in self._tasks:
            self._finish()
            self._tasks[step.label] = self._bars.add_task(step.label, counts="", note="")
        self._bars.update(
            self._tasks[step.label],
            completed=step.done,
            total=step.total,
            counts=_counts(step),
            note=step.note,
        )

    def _finish(self) -> None:
        """Stages follow one another: those before a new one have ended."""
        for task in self._bars.tasks:
            if task.total is None:
                self._bars.update(task.id, total=max(task.completed, 1), completed=task.completed)
            self._bars.stop_task(task.id)


class _Lines:
    """A line when a label is new, when it is complete, and every few seconds between."""

    def __init__(self, console: Console):
        self._console = console
        self._said: dict[str, tuple[float, bool]] = {}

    def show(self, step: Step) -> None:
        complete = step.total is not None and step.done >= step.total
        moment, was_complete = self._said.get(step.label, (0.0, False))
        due = time.monotonic() - moment >= PLAIN_SECONDS
        if (complete and was_complete) or not (due or (complete and not was_complete)):
            return
        self._said[step.label] = (time.monotonic(), complete)
        note = f"  {step.note}" if step.note else ""
        self._console.print(Text(f"  {step.label}: {_counts(step)}{note}"), soft_wrap=True)


def _counts(step: Step) -> str:
    return f"{step.done}/{step.total}" if step.total is not None else f"{step.done}"
