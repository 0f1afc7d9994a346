"""Leave for a promotion: where a spec says `approval: manual`, what would have moved the champion
asks a person instead.

Invariants: one request per alias is open at a time; a newer one makes the older void. A request is
for the state of things that it was made in: once the alias has moved, or it is old, it is void and
says so. Whoever asks, grants or refuses stands in the audit trail. All functions that change
something work in the caller's transaction, under `pipelines.champion.hold`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import uuid_utils
from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import Change, record
from gateway.database import Conflict, now
from gateway.errors import NotFound
from pipelines.champion import champion_of
from pipelines.tables import ApprovalRow

AUTOMATIC, MANUAL = "automatic", "manual"
OPEN, GRANTED, REFUSED, VOID = "open", "granted", "refused", "void"
GOOD_FOR = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Request:
    """What leave is asked for.

    Attributes:
        version: of the registered model `name`, to become champion of `alias`.
        actor: who asks.
        reason: what was found of it.
        experiment_id, verdict_id: what that rests on.
    """

    alias: str
    name: str
    version: str
    actor: str
    reason: str
    experiment_id: str | None = None
    verdict_id: str | None = None


def ask(session: Session, request: Request) -> ApprovalRow:
    """Open a request; what was open on the alias is void with it. Again changes nothing."""
    champion = champion_of(session, request.alias)
    seen = None if champion.last is None else champion.last.promotion_id
    before = open_request(session, request.alias)
    row = ApprovalRow(
        approval_id=str(uuid_utils.uuid7()),
        alias=request.alias,
        name=request.name,
        version=request.version,
        state=OPEN,
        asked_by=request.actor,
        asked_for=request.reason,
        seen=seen,
        experiment_id=request.experiment_id,
        verdict_id=request.verdict_id,
        created_at=now(),
    )
    if before is not None:
        if _same(before, row):
            return before
        end(session, before, VOID, request.actor, f"{row.approval_id} is newer")
    session.add(row)
    session.flush()
    record(
        session,
        Change(
            actor=row.asked_by,
            action="approval.ask",
            subject=f"approval:{row.approval_id}",
            reason=row.asked_for,
            after={"state": OPEN, "alias": row.alias, "name": row.name, "version": row.version},
            evidence=_evidence(row),
        ),
    )
    return row


def end(session: Session, row: ApprovalRow, state: str, actor: str, reason: str) -> None:
    """End an open request, with its audit row."""
    before = row.state
    row.state, row.decided_by, row.reason, row.ended_at = state, actor, reason, now()
    session.flush()
    record(
        session,
        Change(
            actor=actor,
            action=f"approval.{state}",
            subject=f"approval:{row.approval_id}",
            reason=reason,
            before={"state": before},
            after={"state": state, "alias": row.alias, "name": row.name, "version": row.version},
            evidence=_evidence(row),
        ),
    )


def why_void(session: Session, row: ApprovalRow) -> str | None:
    """Why an open request is for something that has passed; None if it still stands."""
    last = champion_of(session, row.alias).last
    if last is not None and last.promotion_id != row.seen:
        return (
            f"the champion of {row.alias} was moved since: {last.kind} to version "
            f"{last.to_version or 'base'} by {last.actor} ({last.reason})"
        )
    if now() - row.created_at > GOOD_FOR:
        return f"it is older than {GOOD_FOR.days} days; try the version again"
    return None


def open_request(session: Session, alias: str) -> ApprovalRow | None:
    """The open request of an alias, if there is one."""
    query = select(ApprovalRow).where(ApprovalRow.alias == alias, ApprovalRow.state == OPEN)
    return session.scalars(query).one_or_none()


def find_approval(session: Session, approval_id: str) -> ApprovalRow:
    """The request with this id; NotFound if there is none."""
    row = session.get(ApprovalRow, approval_id)
    if row is None:
        raise NotFound(f"there is no approval {approval_id[:64]!r}", param="approval_id")
    return row


def require_open(row: ApprovalRow) -> None:
    """Conflict if it was decided, or is void."""
    if row.state != OPEN:
        raise Conflict(
            f"approval {row.approval_id} is {row.state} already, by {row.decided_by}: {row.reason}"
        )


def listed(session: Session, state: str | None, limit: int) -> Sequence[ApprovalRow]:
    """The newest requests in `state` (None: in any), newest first."""
    query = select(ApprovalRow).order_by(ApprovalRow.approval_id.desc()).limit(limit)
    if state is not None:
        query = query.where(ApprovalRow.state == state)
    return session.scalars(query).all()


def _same(one: ApprovalRow, other: ApprovalRow) -> bool:
    wanted = "name", "version", "seen", "experiment_id"
    return all(getattr(one, name) == getattr(other, name) for name in wanted)


def _evidence(row: ApprovalRow) -> dict[str, str | None]:
    return {
        "asked_by": row.asked_by,
        "experiment_id": row.experiment_id,
        "verdict_id": row.verdict_id,
        "promotion_id": row.promotion_id,
    }
