"""How long the log keeps what: ages of bodies and rows, compaction, and forgetting one user.

All of it rewrites the table, so only the holder of the spool's lock calls it, between commits.
"""

import hashlib
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from gateway.batches import QUARANTINE, write_durably
from gateway.configuration import Log
from gateway.erasures import CLEARED, Erasure
from gateway.log_columns import BODIES
from gateway.log_table import LogTable

Outcome = dict[str, Any]

_WITH_BODIES = " OR ".join(f"{name} IS NOT NULL" for name in BODIES)


def retain(table: LogTable, log: Log, spool: Path, *, today: date | None = None) -> Outcome:
    """Apply `retain_bodies_days` and `retain_days`; returns how many rows each touched."""
    today = today or datetime.now(UTC).date()
    outcome: Outcome = {"rows_deleted": 0, "bodies_cleared": 0, "files_removed": 0}
    if log.retain_days is not None:
        limit = today - timedelta(days=log.retain_days)
        outcome["rows_deleted"] = table.delete(f"date < '{limit}'")
    if log.retain_bodies_days is not None:
        limit = today - timedelta(days=log.retain_bodies_days)
        outcome["bodies_cleared"] = table.clear(BODIES, f"date < '{limit}' AND ({_WITH_BODIES})")
    days = min((d for d in (log.retain_days, log.retain_bodies_days) if d), default=None)
    if days is not None:
        _drop_old_quarantine(spool, days)
    if outcome["rows_deleted"] or outcome["bodies_cleared"]:
        outcome["files_removed"] = table.vacuum(hours=0)
    return outcome


def compact(table: LogTable, *, small_files: int = 2) -> Outcome:
    """Merge the small files of every day that has so many, and drop what old versions held."""
    replaced = table.compact(table.crowded_days(small_files))
    return {"files_merged": replaced, "files_removed": table.vacuum()}


def erase(table: LogTable, erasure: Erasure, spool: Path, *, delete_rows: bool) -> Outcome:
    """Forget a user's rows and remove every file that still held them."""
    moment = f"arrow_cast({erasure.before:d}, 'Timestamp(Microsecond, Some(\"UTC\"))')"
    # By digest, because Delta keeps the condition of a delete in its log.
    digest = hashlib.sha256(erasure.user.encode()).hexdigest()
    condition = f"encode(sha256(\"user\"), 'hex') = '{digest}' AND ts <= {moment}"
    rows = table.delete(condition) if delete_rows else table.clear(CLEARED, condition)
    return {
        "rows": rows,
        "rows_deleted": delete_rows,
        "files_removed": table.vacuum(hours=0),
        "quarantined": _forget_quarantined(spool, erasure),
    }


def _forget_quarantined(spool: Path, erasure: Erasure) -> int:
    """Drop the user's records from the quarantine; damaged bytes have no known owner."""
    dropped = 0
    for path in (spool / QUARANTINE).glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _quarantined_user(line) != erasure.user]
        dropped += len(lines) - len(kept)
        if len(kept) < len(lines):
            write_durably(path, b"".join(kept))
    return dropped


def _quarantined_user(line: bytes) -> object:
    item = orjson.loads(line)
    return (item.get("meta") or item.get("row") or {}).get("user")


def _drop_old_quarantine(spool: Path, days: int) -> None:
    oldest = time.time() - days * 86_400
    for path in (spool / QUARANTINE).glob("*.jsonl"):
        if path.stat().st_mtime < oldest:
            path.unlink()
