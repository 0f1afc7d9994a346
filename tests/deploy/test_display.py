"""What is shown of a start, on a terminal and in a file."""

import io
import time

from rich.console import Console

from deploy.display import LiveDisplay, PlainDisplay, display_for
from deploy.parts import Part
from deploy.startup import Progress, Stage


def _progress() -> Progress:
    return Progress(Part(name="engine", command=("x",), url="http://127.0.0.1:8100"))


def test_plain_lines_say_only_what_is_new():
    sink = io.StringIO()
    console = Console(file=sink, width=120)
    display = display_for(console)
    assert isinstance(display, PlainDisplay)
    progress = _progress()
    with display:
        display.show([progress])
        progress.stage, progress.began = Stage.PREPARING, time.monotonic()
        progress.percent, progress.note = 40, "[melting]"
        for _ in range(5):
            display.show([progress])
        progress.stage, progress.percent, progress.note = Stage.READY, None, ""
        display.show([progress])
    lines = sink.getvalue().splitlines()
    assert len(lines) == 2
    assert "preparing" in lines[0] and "40%  [melting]" in lines[0]
    assert "ready" in lines[1] and "http://127.0.0.1:8100" in lines[1]


def test_a_terminal_gets_a_table_in_place():
    sink = io.StringIO()
    display = display_for(Console(file=sink, width=100, force_terminal=True))
    assert isinstance(display, LiveDisplay)
    progress = _progress()
    progress.stage, progress.began = Stage.STARTING, time.monotonic()
    progress.note = "(EngineCore) INFO loading [weights]"
    with display:
        display.show([progress])
    assert "loading [weights]" in sink.getvalue()
