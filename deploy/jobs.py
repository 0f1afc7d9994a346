"""Jobs as processes: a command of `llmops` with the lowest priority, one of each job at a time.

A job that computes leaves the processors to the gateway beside it: it is given what nobody else
wants, and one thread.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from deploy.clock import Clock
from deploy.scheduled_runs import (
    DONE,
    FAILED,
    INTERRUPTED,
    Firing,
    ScheduledRuns,
    UnderWay,
)
from gateway.settings import Settings

PASSED = (0, 100)  # 100: a gate said no, or there is an alarm; the job did its work
LLMOPS = (sys.executable, "-P", "-m", "deploy.cli")
LOWEST = "19"
STOP_SECONDS = 10.0
TAIL_BYTES = 2000
TAIL_LINES = 5
LOOK_SECONDS = 1.0
OUTPUT_BYTES = 64 * 2**20  # of a run that are kept
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_log = logging.getLogger(__name__)


class Runner:
    """Runs commands of `llmops`, one of each job at a time."""

    def __init__(self, settings: Settings, runs: ScheduledRuns, clock: Clock):
        self._settings = settings
        self._runs = runs
        self._clock = clock

    async def run(self, firing: Firing) -> int | None:
        """Run it to its end; the exit code, None if it was ended.

        Raises: UnderWay, with a row that says so.
        """
        try:
            with self._runs.place(firing.job) as place:
                return await self._run(firing, place)
        except UnderWay as error:
            self._runs.refuse(firing, str(error))
            raise

    async def _run(self, firing: Firing, place: int) -> int | None:
        run_id = self._runs.begin(firing)
        output = output_of(self._settings.home, firing.job)
        state, exit_code, message = INTERRUPTED, None, "the schedule was stopped"
        try:
            output.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _emptied(output) as file:
                process = await asyncio.create_subprocess_exec(
                    "nice", "-n", LOWEST, *LLMOPS, *firing.command,
                    stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
                    env={**self._settings.environ, **ONE_THREAD},
                    start_new_session=True, pass_fds=(place,),
                )  # fmt: skip
            _yield_processors(process.pid)
            keeping = asyncio.create_task(_keep_small(output))
            try:
                seconds = self._clock.real_seconds(firing.timeout_seconds)
                exit_code = await _ended(process, seconds)
            finally:
                keeping.cancel()
            state = DONE if exit_code in PASSED else FAILED
            message = tail(output)
            if exit_code is None:
                message = f"ended after its timeout of {firing.timeout_seconds:g} s"
        except OSError as error:
            state, message = FAILED, f"cannot be started: {error}"
        finally:
            self._runs.end(run_id, state, exit_code, message)
        _log.info("%s: %s (exit code %s)", firing.job, state, exit_code)
        return exit_code


def run_command(command: Sequence[str]) -> None:
    """Run a command of `llmops` in the place of the schedule, in a container of its own.

    Raises: SystemExit with its exit code, if it did not do its work.
    """
    done = subprocess.run([*LLMOPS, *command], check=False)
    if done.returncode not in PASSED:
        raise SystemExit(done.returncode)


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> int | None:
    """Its exit code; None if it had to be ended. Whoever cancels ends it, too."""
    try:
        return await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        await _end(process)
        return None
    except asyncio.CancelledError:
        await asyncio.shield(_end(process))
        raise


def _yield_processors(session: int) -> None:
    """Let a session give way as a whole. Linux may share processors by sessions first
    (sched_autogroup), and there `nice` counts only inside of one."""
    with suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text(LOWEST)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it and its children: some may ignore SIGTERM when the first of them is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


def _emptied(output: Path) -> BinaryIO:
    """The file, to be appended to: so it may be emptied while a process writes it."""
    file = output.open("ab")
    file.truncate(0)
    return file


async def _keep_small(output: Path) -> None:
    """Begin the file anew whenever it has grown too big. (A limit of the process, RLIMIT_FSIZE,
    would hold for models and databases as well.)"""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(OSError):
            if os.stat(output).st_size > OUTPUT_BYTES:
                os.truncate(output, 0)


def output_of(home: Path, job: str) -> Path:
    """Where the output of a job's latest run is."""
    return home / "logs" / f"job-{quote(job, safe='')}.log"


def tail(output: Path) -> str:
    """The last lines of a run's output."""
    try:
        with output.open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-TAIL_LINES:])
