"""Starts the parts in the order of what they need, each gated on the health of those before it.

Parts that do not need each other start at the same time. A part that dies before it is healthy,
or takes too long, ends the whole start: `StartupFailed` names it with its last log lines.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deploy.health import probe
from deploy.keeper import DEAD, Keeper, KeeperError, log_path, process_names
from deploy.parts import Part
from deploy.preparing import Preparing

POLL_SECONDS = 0.05
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024


class Stage(StrEnum):
    """Where a part is on its way."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Progress:
    """What is shown of a part. `began` and `ended` are monotonic seconds; percent 0 to 100."""

    part: Part
    stage: Stage = Stage.WAITING
    note: str = ""
    percent: int | None = None
    began: float | None = None
    ended: float | None = None

    def seconds(self) -> float:
        """Time since it left the queue."""
        if self.began is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.began


class StartupFailed(RuntimeError):
    """A part could not be started.

    Attributes:
        part: its name.
        reason: what happened.
        tail: the last lines of its log.
    """

    def __init__(self, part: str, reason: str, tail: Sequence[str]):
        super().__init__(f"{part} could not be started: {reason}")
        self.part = part
        self.reason = reason
        self.tail = tuple(tail)


Show = Callable[[Sequence[Progress]], None]


class Startup:
    """One start of the stack. `show` is called with every part's progress, often."""

    def __init__(
        self, keeper: Keeper, parts: Sequence[Part], environ: Mapping[str, str], show: Show
    ):
        self._keeper = keeper
        self._environ = environ
        self._show = show
        self._progress = {part.name: Progress(part) for part in parts}
        self._preparing: dict[str, Preparing] = {}

    def run(self) -> None:
        """Return when every part is healthy. Raises StartupFailed, KeeperError."""
        try:
            while not self._all_ready():
                dead = self._dead_processes()
                for progress in self._progress.values():
                    self._advance(progress, dead)
                self._show(list(self._progress.values()))
                time.sleep(POLL_SECONDS)
        finally:
            for preparing in self._preparing.values():
                preparing.stop()
            self._show(list(self._progress.values()))

    def _all_ready(self) -> bool:
        return all(progress.stage is Stage.READY for progress in self._progress.values())

    def _dead_processes(self) -> Mapping[str, str]:
        """What became of processes that are not alive, by process name."""
        return {
            state.name: state.trouble or state.state.lower()
            for state in self._keeper.states()
            if state.state in DEAD
        }

    def _advance(self, progress: Progress, dead: Mapping[str, str]) -> None:
        match progress.stage:
            case Stage.WAITING if self._needs_are_ready(progress.part):
                self._begin(progress)
            case Stage.PREPARING:
                self._follow_preparation(progress)
            case Stage.STARTING:
                self._check(progress, dead)
            case Stage.READY:
                self._refuse_dead(progress, dead)

    def _needs_are_ready(self, part: Part) -> bool:
        return all(self._progress[name].stage is Stage.READY for name in part.needs)

    def _begin(self, progress: Progress) -> None:
        part = progress.part
        progress.began = time.monotonic()
        preparation = part.preparation
        if preparation is None or preparation.done.exists():
            self._start(progress)
            return
        progress.stage = Stage.PREPARING
        log = log_path(self._keeper.home, f"{part.name}-preparation")
        self._preparing[part.name] = Preparing(preparation, log, self._environ)

    def _follow_preparation(self, progress: Progress) -> None:
        preparing = self._preparing[progress.part.name]
        progress.percent, progress.note = preparing.step.percent, preparing.step.what
        error = preparing.error()
        if error is not None:
            raise self._failed(progress, error, f"{progress.part.name}-preparation")
        if preparing.ended():
            progress.began = time.monotonic()
            progress.percent = None
            self._start(progress)

    def _start(self, progress: Progress) -> None:
        progress.stage, progress.note = Stage.STARTING, ""
        try:
            self._keeper.start(progress.part)
        except KeeperError as error:
            raise self._failed(progress, str(error)) from error

    def _check(self, progress: Progress, dead: Mapping[str, str]) -> None:
        part = progress.part
        self._refuse_dead(progress, dead)
        trouble = probe(part.check)
        if trouble is None:
            progress.stage, progress.note = Stage.READY, ""
            progress.ended = time.monotonic()
        elif progress.seconds() > part.start_seconds:
            raise self._failed(progress, f"not healthy after {part.start_seconds:.0f} s: {trouble}")
        else:
            progress.note = self._last_line(part)

    def _refuse_dead(self, progress: Progress, dead: Mapping[str, str]) -> None:
        for name in process_names(progress.part):
            if name in dead:
                raise self._failed(progress, dead[name], name)

    def _failed(self, progress: Progress, reason: str, log: str | None = None) -> StartupFailed:
        progress.stage, progress.note = Stage.FAILED, reason
        progress.ended = time.monotonic()
        name = log or process_names(progress.part)[0]
        return StartupFailed(progress.part.name, reason, tail(self._keeper, name))

    def _last_line(self, part: Part) -> str:
        lines = tail(self._keeper, process_names(part)[0], 1)
        return lines[0] if lines else ""


def tail(keeper: Keeper, process: str, lines: int = TAIL_LINES) -> list[str]:
    """The last lines that are not empty of a process's log."""
    try:
        with log_path(keeper.home, process).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
