"""What an evaluation has paid for: answers and judgements in a file that a later attempt goes on
from.

One JSON object a line, `{"key", "at", "value"}`, appended in one write as it comes. A line that a
crash tore is passed over. Whoever finishes removes the file: the next evaluation measures anew.
What is older than `MOST_HOURS` is not taken up again: the model behind the alias may be another by
then. One at a time has it: a second one would pay for what the first is paying for.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

MOST_HOURS = 24


class JournalInUse(RuntimeError):
    """Another evaluation keeps its journal there."""


class Journal:
    """The journal at `path`; a context manager. Its methods may be called from any thread.

    Raises: JournalInUse.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = _locked(path)
        self._kept = _read(path)
        self.found = len(self._kept)
        if self._torn():
            os.write(self._file, b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, key: str) -> Any:
        """What was kept under `key`; None if nothing was."""
        return self._kept.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep `value`, which is plain JSON."""
        self._kept[key] = value
        line = orjson.dumps({"key": key, "at": int(time.time()), "value": value})
        os.write(self._file, line + b"\n")

    def forget(self) -> None:
        """Begin anew."""
        os.ftruncate(self._file, 0)
        self._kept, self.found = {}, 0

    def finish(self) -> None:
        """All is done and reported: nothing of it is wanted again."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _torn(self) -> bool:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return False
            file.seek(size - 1)
            return file.read(1) != b"\n"


def key_of(*parts: Any) -> str:
    """A key that stands for all of `parts`, plain JSON values."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _locked(path: Path) -> int:
    """The file, opened and held. Who had it may have removed it in this moment: look again."""
    while True:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, path):
                return file
        except OSError as error:
            os.close(file)
            raise JournalInUse(f"{path}: an evaluation is under way; wait for its end") from error
        os.close(file)


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[str, Any]:
    oldest, kept = time.time() - MOST_HOURS * 3600, dict[str, Any]()
    for line in path.read_bytes().splitlines():
        try:
            row = orjson.loads(line)
            if isinstance(row, Mapping) and row["at"] >= oldest:
                kept[str(row["key"])] = row["value"]
        except (ValueError, LookupError, TypeError):
            continue  # torn by a crash
    return kept
