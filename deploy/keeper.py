"""The process keeper: supervisord, told by a generated file and steered over a Unix socket.

Supervisord starts nothing by itself: `deploy.startup` starts each part when what it needs is
healthy. From then on supervisord restarts what dies, with back-off, rotates the logs and stops
whole process groups. Why supervisord: `docs/decisions.md`.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.control import control
from deploy.parts import Part
from deploy.uptime import LISTENING_FILE, OWN_NAME

SOCKET_PATH_MAX = 100  # sun_path has 108 bytes
START_SECONDS = 15.0
UNSPEAKABLE = re.compile(r"[\r\n\0%]|\s[;#]")  # supervisord's file has no sure way to say these
SETTLED_SECONDS = 5  # a part that dies sooner than this is restarted with back-off
PACKAGE_ROOT = Path(__file__).resolve().parent.parent
MARKER = "LLMOPS_PART"
ALIVE = frozenset({"STARTING", "RUNNING"})
DEAD = frozenset({"STOPPED", "EXITED", "BACKOFF", "FATAL", "UNKNOWN"})


class KeeperError(RuntimeError):
    """The keeper could not be started or reached; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the keeper says of one process. `since`: seconds since the epoch."""

    part: str
    name: str
    state: str
    pid: int
    since: int
    trouble: str


def log_path(home: Path, process: str) -> Path:
    """Where the output of a process goes."""
    return home / "logs" / f"{process}.log"


def process_names(part: Part) -> list[str]:
    """The names of a part's processes."""
    if part.copies == 1:
        return [part.name]
    return [f"{part.name}-{number}" for number in range(part.copies)]


def control_socket(home: Path) -> Path:
    """The keeper's socket; where the path would be too long, one in a folder of ours in /tmp."""
    path = home / "run" / "keeper.sock"
    if len(bytes(path)) <= SOCKET_PATH_MAX:
        return path
    digest = hashlib.sha256(bytes(home)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"llmops-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise KeeperError(f"{folder} is not ours alone; remove it, or use a shorter LLMOPS_HOME")
    return folder / f"{digest}.sock"


class Keeper:
    """The keeper of the stack that lives in `home`, whether it runs or not."""

    def __init__(self, home: Path):
        self.home = home
        self.run_dir = home / "run"
        self._socket = control_socket(home)
        self._child: subprocess.Popen[bytes] | None = None

    def running(self) -> bool:
        """Whether it answers."""
        try:
            control(self._socket).supervisor.getState()
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def launch(self, parts: Sequence[Part], environ: Mapping[str, str]) -> None:
        """Start supervisord with `parts`, none of them started yet. Does not wait for it."""
        for folder in (self.run_dir, self.home / "logs"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.unlink(missing_ok=True)
        (self.run_dir / LISTENING_FILE).unlink(missing_ok=True)
        for part in parts:
            self._put_away_traces(part)
        file = self.run_dir / "keeper.conf"
        text = keeper_file(self.home, self._socket, parts)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
        with self._errors().open("wb") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(file)],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def wait_until_running(self) -> None:
        """Wait until it answers and its listener listens. Raises KeeperError."""
        deadline = time.monotonic() + START_SECONDS
        listening = self.run_dir / LISTENING_FILE
        # The call comes first: it wakes supervisord, whose listener starts only after a 1 s sleep.
        while not (self.running() and listening.exists()):
            ended = self._child is not None and self._child.poll() is not None
            if ended or time.monotonic() > deadline:
                tail = self._errors().read_text(errors="replace")[-2000:]
                raise KeeperError(f"supervisord did not start: {tail}")
            time.sleep(0.02)

    def start(self, part: Part) -> None:
        """Start the part's processes. Raises KeeperError where the program cannot be run."""
        supervisor = control(self._socket).supervisor
        try:
            for name in process_names(part):
                supervisor.startProcess(f"{part.name}:{name}", False)
        except xmlrpc.client.Fault as fault:
            raise KeeperError(f"{part.name} cannot be run: {fault.faultString}") from fault
        except (OSError, xmlrpc.client.Error) as error:
            raise KeeperError(f"the keeper is gone: {error}") from error

    def stop(self, part: str) -> None:
        """Ask the part's processes to stop, without waiting."""
        control(self._socket).supervisor.stopProcessGroup(part, False)

    def states(self) -> list[ProcessState]:
        """What each process does. Raises KeeperError where the keeper does not answer."""
        try:
            found = control(self._socket).supervisor.getAllProcessInfo()
        except (OSError, xmlrpc.client.Error) as error:
            raise KeeperError(f"the keeper is gone: {error}") from error
        listed: list[Any] = found if isinstance(found, list) else []
        return [_state(item) for item in listed if item["group"] != OWN_NAME]

    def shutdown(self) -> None:
        """Ask it to stop what still runs, the last started first, and to end."""
        control(self._socket).supervisor.shutdown()

    def forget(self) -> None:
        """Remove what a keeper that has ended leaves behind."""
        self._socket.unlink(missing_ok=True)
        (self.run_dir / "keeper.pid").unlink(missing_ok=True)

    def _put_away_traces(self, part: Part) -> None:
        """Logs and the sign of life of an earlier run must not be taken for this one's."""
        for name in process_names(part):
            log = log_path(self.home, name)
            if log.exists():
                log.replace(log.with_suffix(".log.before"))
        if part.check.startswith("file:"):
            Path(urlsplit(part.check).path).unlink(missing_ok=True)

    def _errors(self) -> Path:
        return log_path(self.home, "keeper-errors")


def part_environment(home: Path, config_path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that every part gets: the caller's, where things are, and our packages."""
    paths = [str(PACKAGE_ROOT), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **environ,
        "LLMOPS_HOME": str(home),
        "LLMOPS_CONFIG": str(config_path),
        MARKER: "keeper",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "PROMETHEUS_MULTIPROC_DIR": str(home / "run" / "metrics"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def keeper_file(home: Path, socket: Path, parts: Sequence[Part]) -> str:
    """The text of supervisord's configuration."""
    run_dir = home / "run"
    listener = shlex.join([sys.executable, "-P", "-m", "deploy.uptime", str(run_dir), str(socket)])
    sections = [
        _section(
            "supervisord",
            nodaemon="true",
            silent="true",
            logfile=log_path(home, "keeper"),
            logfile_maxbytes="10MB",
            logfile_backups="2",
            pidfile=run_dir / "keeper.pid",
            childlogdir=home / "logs",
            nocleanup="true",
        ),
        _section("unix_http_server", file=socket, chmod="0700"),
        _section(
            "rpcinterface:supervisor",
            **{
                "supervisor.rpcinterface_factory": (
                    "supervisor.rpcinterface:make_main_rpcinterface"
                )
            },
        ),
        _section(
            f"eventlistener:{OWN_NAME}",
            command=listener,
            events="PROCESS_STATE",
            buffer_size="1000",
            startsecs="0",  # or it is sent nothing for its first second
            stdout_logfile="NONE",
            stderr_logfile=log_path(home, OWN_NAME),
            stderr_logfile_maxbytes="1MB",
            environment=f'{MARKER}="{OWN_NAME}"',
        ),
        *(_program(home, part, number) for number, part in enumerate(parts)),
    ]
    return "\n".join(sections)


def _program(home: Path, part: Part, number: int) -> str:
    name = f"{part.name}-%(process_num)d" if part.copies > 1 else part.name
    text = _section(
        f"program:{part.name}",
        command=shlex.join(_command(part)),
        environment=f'{MARKER}="{part.name}"',
        directory=Path.cwd(),
        numprocs=part.copies,
        priority=100 + number,
        autostart="false",
        autorestart="true",
        startsecs=SETTLED_SECONDS,
        startretries=1_000_000,
        stopwaitsecs=round(part.stop_seconds),
        stopasgroup="true",
        killasgroup="true",
        redirect_stderr="true",
        stdout_logfile_maxbytes="10MB",
        stdout_logfile_backups=2,
    )
    # These two hold supervisord's own expansions.
    return f"{text}process_name={name}\nstdout_logfile={log_path(home, name)}\n"


def _command(part: Part) -> tuple[str, ...]:
    """The command with the part's environment before it: supervisord's own way to set variables
    loses quotes. `env` becomes the program, so the process is still the part's."""
    if not part.environment:
        return part.command
    return (
        "/usr/bin/env",
        *(f"{key}={value}" for key, value in part.environment.items()),
        *part.command,
    )


def _section(title: str, **values: object) -> str:
    for key, value in values.items():
        if UNSPEAKABLE.search(str(value)):
            raise KeeperError(f"{title}: {key} has a line break, '%', ' ;' or ' #' in it: {value}")
    lines = [f"{key}={value}" for key, value in values.items()]
    return "\n".join((f"[{title}]", *lines, ""))


def _state(item: Mapping[str, Any]) -> ProcessState:
    return ProcessState(
        part=str(item["group"]),
        name=str(item["name"]),
        state=str(item["statename"]),
        pid=int(item["pid"]),
        since=int(item["start"]),
        trouble=str(item["spawnerr"]),
    )
