"""Finds and ends processes of a stack that its keeper does not hold (any more).

Every process of a stack has `LLMOPS_PART` and its `LLMOPS_HOME` in its environment. Programs that
rename themselves overwrite that (vLLM's children do), so the descendants of such processes and the
process groups that the keeper made count as well.
"""

import os
import time
from pathlib import Path

import psutil

from deploy.keeper import MARKER
from deploy.uptime import read_signs

TERM_SECONDS = 5.0
POLL_SECONDS = 0.05


def leftovers(home: Path) -> list[psutil.Process]:
    """Live processes of the stack in `home`, the keeper included, without this one."""
    everything = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    marked = [process for process in everything if is_marked(process, home)]
    found = {process.pid: process for process in marked}
    for process in marked:
        found.update({child.pid: child for child in _descendants(process)})
    groups = _groups(home, marked)
    for process in everything:
        if _group(process.pid) in groups:
            found[process.pid] = process
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _alive(process)]


def end(processes: list[psutil.Process], term_seconds: float = TERM_SECONDS) -> None:
    """Ask `processes` to stop, wait, and kill those that did not. Returns when all are gone."""
    for process in processes:
        _signal(process, "terminate")
    deadline = time.monotonic() + term_seconds
    while any(_alive(process) for process in processes):
        if time.monotonic() > deadline:
            for process in processes:
                _signal(process, "kill")
            deadline = time.monotonic() + term_seconds
        time.sleep(POLL_SECONDS)


def is_marked(process: psutil.Process, home: Path) -> bool:
    """Whether `process` says of itself that it belongs to the stack in `home`."""
    try:
        environ = process.environ()
    except (psutil.Error, OSError):
        return False
    return MARKER in environ and environ.get("LLMOPS_HOME") == str(home)


def describe(process: psutil.Process) -> str:
    """`pid 12 (python -m gateway.worker)`."""
    try:
        words = " ".join(process.cmdline())[:60] or process.name()
    except psutil.Error:
        words = "gone"
    return f"pid {process.pid} ({words})"


def _groups(home: Path, marked: list[psutil.Process]) -> set[int]:
    """Process groups of the keeper's children: those of marked processes, and those on record
    whose leader has ended (a number that is in use as a group is never given out again)."""
    groups = {_group(process.pid) for process in marked}
    for pid in {sign.pid for sign in read_signs(home / "run") if sign.pid > 1}:
        if not psutil.pid_exists(pid):
            groups.add(pid)
    return groups - {_group(os.getpid()), 0}


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, how: str) -> None:
    try:
        process.terminate() if how == "terminate" else process.kill()
    except psutil.Error:
        return
