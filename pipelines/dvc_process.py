"""DVC as a child process: its environment, its output line by line, what is left of one that died.

The child inherits a locked file, so that the lock is held for as long as DVC lives, also if the
process that started it was killed.
"""

import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import make_url

from gateway.settings import Settings

OnLine = Callable[[str], None]

RUNNING = re.compile(r"Running stage '([\w-]+)'")
FAILED = re.compile(r"ERROR: failed to reproduce '([\w-]+)'")
STAGE_MODULE = "pipelines.stages"
LAST_LINES = 10
STOP_SECONDS = 10
CHECKOUT = Path(__file__).resolve().parents[1]


class WorkspaceError(RuntimeError):
    """DVC could not do what it was asked; the message has its own last words."""


class StageFailed(WorkspaceError):
    """A stage failed; the message has its own last words."""

    def __init__(self, stage: str, reason: str):
        super().__init__(f"stage {stage} failed: {reason}")
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Dvc:
    """DVC in `folder`. `held` is the descriptor of the lock that its processes inherit."""

    folder: Path
    environment: Mapping[str, str]
    held: int

    def run(self, *arguments: str, on_line: OnLine | None = None) -> list[str]:
        """Run one command; returns the stages that were executed.

        Raises:
            StageFailed: a stage failed.
            WorkspaceError: DVC itself failed.
        """
        ran: list[str] = []
        said: deque[str] = deque(maxlen=LAST_LINES)
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(self.held,),
            text=True,
            errors="replace",
        )
        try:
            for line in _lines(process):
                begun = RUNNING.match(line)
                if begun:
                    ran.append(begun[1])
                    said.clear()
                said.append(line)
                if on_line is not None:
                    on_line(line)
            code = process.wait()
        finally:
            _end(process)
        if code:
            raise _failure(arguments, code, list(said))
        return ran


def stage_environment(settings: Settings) -> dict[str, str]:
    """What DVC and the stages see: ours, with absolute paths, and none of DVC's own variables."""
    given = {name: text for name, text in settings.environ.items() if not name.startswith("DVC_")}
    bin_dir = str(Path(sys.executable).parent)
    path = [Path(entry).absolute() for entry in given.get("PYTHONPATH", "").split(":") if entry]
    if (CHECKOUT / "pyproject.toml").exists():
        path.append(CHECKOUT)  # it need not be installed
    return given | {
        "PATH": ":".join([bin_dir, given.get("PATH", "/usr/local/bin:/usr/bin:/bin")]),
        "PYTHONPATH": ":".join(map(str, path)),
        "PYTHONSAFEPATH": "1",  # folders of the workspace are no packages
        "SHELL": "/bin/sh",
        "DVC_NO_ANALYTICS": "1",
        "LLMOPS_HOME": str(settings.home),
        "LLMOPS_CONFIG": str(settings.config_path),
        "LLMOPS_DATABASE_URL": _absolute(settings.database_url),
        "LLMOPS_ENGINE_PYTHON": str(settings.engine_python),
    }


def orphans(folder: Path) -> list[int]:
    """Processes of stages that still work in `folder` though their DVC is gone."""
    return [process.pid for process in psutil.process_iter() if _is_stage_in(process, folder)]


def _is_stage_in(process: psutil.Process, folder: Path) -> bool:
    try:
        with process.oneshot():
            return (
                STAGE_MODULE in process.cmdline()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.cwd() == str(folder)
            )
    except (psutil.Error, OSError):  # it ended meanwhile: psutil lets some of these through
        return False


def drop_stale_locks(rwlock: Path) -> None:
    """Remove what a killed DVC left: it would block the next one once its pid is another's.

    One that a living DVC holds (somebody's own `dvc` in the workspace) stays.
    """
    try:
        kept = json.loads(rwlock.read_text())
        readers = [info for infos in kept.get("read", {}).values() for info in infos]
        pids = {int(info["pid"]) for info in [*readers, *kept.get("write", {}).values()]}
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, AttributeError):
        pids = set()  # it was killed as it wrote
    if not any(map(_is_dvc, pids)):
        rwlock.unlink()


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    if process.stdout is None:
        return
    for line in process.stdout:
        text = line.rstrip()
        if text:
            yield text


def _end(process: subprocess.Popen[str]) -> None:
    """Stop DVC and its stage if we leave before they do (an interrupt, an error in `on_line`)."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        dvc = psutil.Process(process.pid)
        started = [*dvc.children(recursive=True), dvc]
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        _, left = psutil.wait_procs(started, timeout=STOP_SECONDS)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def _failure(arguments: Sequence[str], code: int, said: list[str]) -> WorkspaceError:
    stages = [found[1] for line in said if (found := FAILED.match(line))]
    own = [line for line in said if not line.startswith(("ERROR: failed to reproduce", "> "))]
    if not stages:
        reason = "\n".join(said) or f"it ended with code {code}"
        return WorkspaceError(f"dvc {' '.join(arguments)} failed: {reason}")
    return StageFailed(stages[0], _reason(own) or "\n".join(said))


def _reason(own: Sequence[str]) -> str:
    """What the stage said last: its `{"error": …}`, or else its last lines but for its progress."""
    words = []
    for line in own:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if isinstance(said, dict) and "error" in said:
            return str(said["error"])
        if not isinstance(said, dict) and not RUNNING.match(line):
            words.append(line)
    return "\n".join(words)


def _absolute(url: str) -> str:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return url
    whole = parsed.set(database=str(Path(parsed.database or "").absolute()))
    return whole.render_as_string(hide_password=False)
