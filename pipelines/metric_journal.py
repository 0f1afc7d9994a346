"""Metrics of a training on disk, one JSON line each, from the moment that they are measured.

The journal is the truth; MLflow is sent a copy. The first line says which training it belongs to,
so that a second attempt goes on with it and another training begins a new one. A line is whole or,
if the process was killed while it wrote, the last one and torn: then it is cut off.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

import uuid_utils

from gateway.whole_file import write_whole

BATCH = 1000  # MLflow takes no more metrics in one call


class MetricJournal:
    """The journal in `path` of the training `identity`. The training appends, a sender reads.

    Attributes:
        start_id: made with the journal; the same for every attempt at this training.
        replaced: `start_id` of the other training whose journal lay here before, or None.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]):
        self.path = path
        self.replaced: str | None = None
        self._lock = threading.Lock()
        self._sent = 0
        self._rows: list[dict[str, Any]] = []
        head, rows = _read(path)
        if head is not None and head["identity"] == dict(identity):
            self.start_id: str = head["start_id"]
            self._rows = rows
        else:
            self.replaced = None if head is None else head["start_id"]
            self.start_id = str(uuid_utils.uuid7())
            head = {"start_id": self.start_id, "identity": dict(identity)}
        _write(path, [head, *self._rows])
        self._seen = {(row["key"], row["step"]) for row in self._rows}
        self._file = path.open("a")

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep `metrics` of `step`. Steps that a resumed training takes again are kept once."""
        moment = int(time() * 1000)
        fresh = [
            {"key": key, "value": float(value), "timestamp": moment, "step": step}
            for key, value in metrics.items()
            if (key, step) not in self._seen
        ]
        self._seen.update((row["key"], step) for row in fresh)
        self._file.write("".join(json.dumps(row) + "\n" for row in fresh))
        self._file.flush()
        with self._lock:
            self._rows += fresh

    def unsent(self) -> list[dict[str, Any]]:
        """The next rows to send, at most `BATCH`; the same ones until `mark_sent`."""
        with self._lock:
            return self._rows[self._sent : self._sent + BATCH]

    def mark_sent(self, count: int) -> None:
        """The first `count` of `unsent` have arrived."""
        with self._lock:
            self._sent += count

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """First line and rows, up to the first line that is torn."""
    if not path.exists():
        return None, []
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return (lines[0], lines[1:]) if lines else (None, [])


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
