"""Shows the start: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.startup import Progress, Stage

STYLES = {
    Stage.WAITING: "dim",
    Stage.PREPARING: "yellow",
    Stage.STARTING: "yellow",
    Stage.READY: "green",
    Stage.FAILED: "bold red",
}
REPEAT_SECONDS = 15.0
BAR_WIDTH = 16


class Display(Protocol):
    """Takes every part's progress, many times a second."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, progress: Sequence[Progress]) -> None:
        """Show it."""


def display_for(console: Console) -> "LiveDisplay | PlainDisplay":
    """The display that fits where `console` writes."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class LiveDisplay:
    """A table that is drawn anew in place."""

    def __init__(self, console: Console):
        self._live = Live(console=console, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, progress: Sequence[Progress]) -> None:
        """Draw the table."""
        self._live.update(_table(progress))


class PlainDisplay:
    """A line whenever something changes, and now and then while it does not."""

    def __init__(self, console: Console):
        self._console = console
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def show(self, progress: Sequence[Progress]) -> None:
        """Say what is new."""
        for item in progress:
            self._say(item)

    def _say(self, item: Progress) -> None:
        if item.stage is Stage.WAITING:
            return
        news = f"{item.stage} {item.percent} {item.note if item.percent is not None else ''}"
        before, moment = self._said.get(item.part.name, ("", 0.0))
        settled = item.stage in (Stage.READY, Stage.FAILED)
        if news == before and (settled or time.monotonic() - moment < REPEAT_SECONDS):
            return
        self._said[item.part.name] = (news, time.monotonic())
        line = f"{item.part.name:<11} {item.stage:<10} {item.seconds():>5.1f} s  {_what(item)}"
        self._console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _table(progress: Sequence[Progress]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(min_width=11, no_wrap=True)
    table.add_column(min_width=10, no_wrap=True)
    table.add_column(min_width=7, justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for item in progress:
        elapsed = f"{item.seconds():.1f} s" if item.began is not None else ""
        style = STYLES[item.stage]
        table.add_row(
            item.part.name, Text(item.stage, style=style), elapsed, Text(_what(item), style="dim")
        )
    return table


def _what(item: Progress) -> str:
    if item.stage is Stage.READY:
        return item.part.url or ""
    if item.percent is None:
        return item.note
    filled = round(item.percent / 100 * BAR_WIDTH)
    return f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {item.percent:>3}%  {item.note}"
