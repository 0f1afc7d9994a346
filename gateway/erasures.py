"""Users whose data is to be forgotten: applied to rows on their way from the spool to the table.

An erasure stays in force for a day after it was asked for, because a request that was under way
then is written later. It concerns rows whose request arrived before it was asked for; what the
user sends afterwards is kept again.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from gateway.batches import write_durably
from gateway.log_columns import IDENTITY, Row

FILE = "erasures.json"
IN_FORCE_US = 86_400 * 1_000_000
_ENCODINGS = ("request_encoding", "response_encoding")
CLEARED = (*IDENTITY, *_ENCODINGS)


@dataclass(frozen=True, slots=True)
class Erasure:
    """Forget what `user` sent before `before` (microseconds since the epoch, UTC)."""

    user: str
    before: int

    def covers(self, row: Row) -> bool:
        """Whether the row is one of those."""
        return bool(row["user"] == self.user and row["ts"] <= self.before)


class Erasures:
    """Those in force, kept in the spool folder."""

    def __init__(self, spool: Path):
        self._path = spool / FILE
        self._kept = self._load()

    def add(self, erasure: Erasure) -> None:
        """Put one in force, durably, before anything is erased."""
        oldest = time.time_ns() // 1000 - IN_FORCE_US
        self._kept = [kept for kept in self._kept if kept.before > oldest] + [erasure]
        write_durably(self._path, orjson.dumps([asdict(kept) for kept in self._kept]))

    def apply(self, row: Row) -> None:
        """Clear bodies and identity of a row that one of them covers."""
        if any(erasure.covers(row) for erasure in self._kept):
            row.update(dict.fromkeys(CLEARED))

    def _load(self) -> list[Erasure]:
        try:
            stored = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return []
        return [Erasure(**fields) for fields in stored]
