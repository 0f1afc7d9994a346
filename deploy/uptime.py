"""When each part ran: lines appended to LLMOPS_HOME/run/uptime.jsonl, for costs and for `down`.

Run by the keeper as an event listener (supervisord's event protocol on standard input and
output). One JSON object a line: `part`, `event` (`started` | `stopped`), `ts` (microseconds since
the epoch, UTC) and `pid` (0 where it is not known). A part that has no `stopped` before its next
`started`, because the machine or the keeper died, is taken to have run until its last known sign.

When a part's first process ends, what is left of its process group is killed here: vLLM's
children outlive it otherwise, with their memory.
"""

import json
import os
import signal
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from deploy.control import control

FILE = "uptime.jsonl"
OWN_NAME = "uptime"
LISTENING_FILE = "uptime.listening"
STARTED = frozenset({"PROCESS_STATE_STARTING"})
STOPPED = frozenset(
    {
        "PROCESS_STATE_BACKOFF",
        "PROCESS_STATE_EXITED",
        "PROCESS_STATE_FATAL",
        "PROCESS_STATE_STOPPED",
    }
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A time that a part ran; both in microseconds since the epoch. `end` None: still running."""

    part: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Sign:
    """One line of the file."""

    part: str
    event: str
    ts: int
    pid: int


def read_signs(run_dir: Path) -> Iterator[Sign]:
    """The lines of the file, oldest first; a torn last line is left out."""
    try:
        lines = (run_dir / FILE).read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            raw = json.loads(line)
            yield Sign(raw["part"], raw["event"], raw["ts"], raw.get("pid", 0))
        except (ValueError, KeyError):
            continue


def intervals(signs: Iterable[Sign]) -> list[Interval]:
    """When each part ran, in order of the start; a part with copies has one entry for each."""
    running: dict[str, int] = {}
    found: list[Interval] = []
    last = 0
    for sign in signs:
        begun = running.pop(sign.part, None) if sign.event in ("started", "stopped") else None
        if begun is not None:
            end = sign.ts if sign.event == "stopped" else last
            found.append(Interval(sign.part, begun, max(end, begun)))
        if sign.event == "started":
            running[sign.part] = sign.ts
        last = sign.ts
    found += [Interval(part, begun, None) for part, begun in running.items()]
    return sorted(found, key=lambda interval: interval.start)


def append(run_dir: Path, part: str, event: str, pid: int) -> None:
    """Add a line, whole, whoever else writes."""
    ts = time.time_ns() // 1000
    line = json.dumps({"part": part, "event": event, "ts": ts, "pid": pid}) + "\n"
    descriptor = os.open(run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def close_open(run_dir: Path) -> None:
    """Write `stopped` for every part that is still marked as running; nothing may run any more."""
    for interval in intervals(read_signs(run_dir)):
        if interval.end is None:
            append(run_dir, interval.part, "stopped", 0)


class Listener:
    """Follows the keeper's events. `keeper` is its remote control."""

    def __init__(self, run_dir: Path, keeper: xmlrpc.client.ServerProxy):
        self._run_dir = run_dir
        self._keeper = keeper
        self._pids: dict[str, int] = {}

    def handle(self, event: str, part: str) -> None:
        """Note that `part` came to be in the state that `event` names."""
        if event in STARTED:
            pid = self._pid(part)
            self._pids[part] = pid
            append(self._run_dir, part, "started", pid)
        elif event in STOPPED and part in self._pids:
            pid = self._pids.pop(part)
            append(self._run_dir, part, "stopped", pid)
            kill_group(pid)

    def _pid(self, part: str) -> int:
        # The event is sent before the process is forked; by the time of this call it is there.
        try:
            found = self._keeper.supervisor.getAllProcessInfo()
        except (OSError, xmlrpc.client.Error):
            return 0
        listed = found if isinstance(found, list) else []
        return next((int(item["pid"]) for item in listed if item["name"] == part), 0)


def kill_group(pid: int) -> None:
    """Kill what is left of the process group that `pid` led; its leader must have ended."""
    if pid > 1:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def listen(listener: Listener, source: TextIO, sink: TextIO) -> None:
    """Speak supervisord's event protocol until `source` ends."""
    while True:
        sink.write("READY\n")
        sink.flush()
        header = source.readline()
        if not header:
            return
        fields = _fields(header)
        body = _fields(source.read(int(fields["len"])))
        sink.write("RESULT 2\nOK")
        sink.flush()
        if body.get("groupname") != OWN_NAME:
            listener.handle(fields["eventname"], body.get("processname", ""))


def _fields(text: str) -> dict[str, str]:
    return dict(item.split(":", 1) for item in text.split() if ":" in item)


def main(arguments: list[str]) -> None:
    """Entry of the listener process: run folder, control socket."""
    run_dir, socket = Path(arguments[0]), Path(arguments[1])
    (run_dir / LISTENING_FILE).touch()
    listen(Listener(run_dir, control(socket)), sys.stdin, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
