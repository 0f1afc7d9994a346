"""Which pending feedback has its request or episode in the log by now, and which never got it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from gateway.database import now
from gateway.feedback import FeedbackRecord, FeedbackStore
from gateway.request_log import LogReader

AT_ONCE = 500
Found = dict[str, str | None]


@dataclass(frozen=True, slots=True)
class FeedbackCheck:
    """What a check found.

    Attributes:
        resolved: how many pieces were resolved by it.
        waiting: pieces whose request or episode is not in the log, but may still come.
        overdue: those that have waited for too long.
    """

    resolved: int
    waiting: tuple[FeedbackRecord, ...]
    overdue: tuple[FeedbackRecord, ...]


def check_pending(
    store: FeedbackStore, reader: LogReader, *, older_than: timedelta
) -> FeedbackCheck:
    """Resolve what can be resolved; what has waited for longer than `older_than` is overdue.

    Feedback is only ever joined to a request of its own tenant.
    """
    resolved = 0
    left: list[FeedbackRecord] = []
    after = ""
    while batch := store.pending(limit=AT_ONCE, after=after):
        found = _requests(batch, reader) | _episodes(batch, reader)
        store.resolve(found)
        resolved += len(found)
        left += [piece for piece in batch if piece.feedback_id not in found]
        after = batch[-1].feedback_id
    deadline = now() - older_than
    return FeedbackCheck(
        resolved=resolved,
        waiting=tuple(piece for piece in left if piece.created_at >= deadline),
        overdue=tuple(piece for piece in left if piece.created_at < deadline),
    )


def _requests(batch: Sequence[FeedbackRecord], reader: LogReader) -> Found:
    ours = [piece.request_id for piece in batch if piece.request_id]
    theirs = [piece.reference for piece in batch if piece.reference]
    if not ours and not theirs:
        return {}
    rows = reader.select(
        "SELECT tenant, request_id, upstream_id FROM requests"
        f" WHERE request_id IN ({_marks(ours)}) OR upstream_id IN ({_marks(theirs)})",
        [*ours, *theirs],
    ).rows
    known = {(tenant, upstream): request_id for tenant, request_id, upstream in rows}
    known |= {(tenant, request_id): request_id for tenant, request_id, _ in rows}
    found: Found = {}
    for piece in batch:
        for name in (piece.request_id, piece.reference):
            if name is not None and (piece.tenant, name) in known:
                found[piece.feedback_id] = known[piece.tenant, name]
                break
    return found


def _episodes(batch: Sequence[FeedbackRecord], reader: LogReader) -> Found:
    wanted = {piece.episode_id for piece in batch if piece.episode_id}
    if not wanted:
        return {}
    rows = reader.select(
        f"SELECT DISTINCT tenant, episode_id FROM requests WHERE episode_id IN ({_marks(wanted)})",
        list(wanted),
    ).rows
    known = set(rows)
    return {piece.feedback_id: None for piece in batch if (piece.tenant, piece.episode_id) in known}


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values) or "NULL"
