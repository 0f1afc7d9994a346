"""Orders of people about requests for leave: grant, refuse. And what the controller does itself:
requests that have been overtaken become void.

A grant moves the champion as any promotion does: candidate checked, adapter loaded on every
replica, one transaction under `hold` with verdict, audit rows and the request's own end.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import require_reason
from gateway.database import Conflict, Database
from pipelines.approval import (
    GRANTED,
    OPEN,
    REFUSED,
    VOID,
    end,
    find_approval,
    require_open,
    why_void,
)
from pipelines.candidate import lineage_of, require_candidate
from pipelines.champion import PROMOTE, Move, Services, hold, move_champion, running_experiment
from pipelines.experiment import CONTROLLER, watch_winner
from pipelines.promotion import Moved
from pipelines.tables import ApprovalRow, ModelVersionRow, PromotionRow


@dataclass(frozen=True, slots=True)
class Order:
    """A person's word on a request. `reason` is mandatory: who reads the audit trail wants it."""

    approval_id: str
    actor: str
    reason: str


async def grant(services: Services, order: Order) -> Moved:
    """Let the version become champion. Again changes nothing.

    Raises:
        BadRequest: no reason.
        NotFound: there is no such request.
        Conflict: it was refused, is void, its lineage has gaps, or an experiment is under way.
        RolloutFailed: its adapter is not served on every replica.
    """
    require_reason(order.reason)
    with services.database.session() as session:
        row = find_approval(session, order.approval_id)
        candidate = _candidate(session, row)
        if row.state == GRANTED:
            move = session.get(PromotionRow, row.promotion_id)
            return Moved(move, candidate.served_name, repeated=True)
        require_open(row)
        overtaken = why_void(session, row)
    if overtaken is None:
        await services.replicas.load(candidate.served_name, Path(candidate.path))
    with services.database.transaction() as session:
        hold(session)
        row = find_approval(session, order.approval_id)
        require_open(row)
        overtaken = why_void(session, row)
        if overtaken is not None:
            end(session, row, VOID, CONTROLLER, overtaken)
        else:
            moved = _move(session, row, order)
    if overtaken is not None:
        raise Conflict(f"approval {row.approval_id} is void: {overtaken}")
    return Moved(moved, candidate.served_name)


def refuse(database: Database, order: Order) -> ApprovalRow:
    """Let the champion stay. Again changes nothing.

    Raises:
        BadRequest: no reason.
        NotFound: there is no such request.
        Conflict: it was granted, or is void.
    """
    require_reason(order.reason)
    with database.transaction() as session:
        hold(session)
        row = find_approval(session, order.approval_id)
        if row.state != REFUSED:
            require_open(row)
            end(session, row, REFUSED, order.actor, order.reason)
    return row


def void_overtaken(database: Database) -> list[str]:
    """End the open requests whose moment has passed; says which."""
    if not _overtaken(database):
        return []  # as nearly always, and nobody was kept from writing
    with database.transaction() as session:
        hold(session)
        done = []
        for row, why in _reasons(session):
            end(session, row, VOID, CONTROLLER, why)
            done.append(f"approval {row.approval_id} on {row.alias} is void: {why}")
    return done


def _overtaken(database: Database) -> bool:
    with database.session() as session:
        return bool(_reasons(session))


def _reasons(session: Session) -> list[tuple[ApprovalRow, str]]:
    rows = session.scalars(select(ApprovalRow).where(ApprovalRow.state == OPEN)).all()
    return [(row, why) for row in rows if (why := why_void(session, row)) is not None]


def _candidate(session: Session, row: ApprovalRow) -> ModelVersionRow:
    """The version, if it may have traffic. One that an experiment found better needs no other
    verdict."""
    return require_candidate(
        session, row.name, row.version, row.asked_for if row.experiment_id else None
    )


def _move(session: Session, row: ApprovalRow, order: Order) -> PromotionRow:
    running = running_experiment(session, row.alias)
    if running is not None:
        raise Conflict(
            f"{row.alias}: experiment {running.experiment_id} is under way; wait for its end, "
            "or stop it"
        )
    candidate = _candidate(session, row)
    move = Move(
        kind=PROMOTE,
        alias=row.alias,
        name=row.name,
        to_version=row.version,
        actor=order.actor,
        reason=order.reason,
        experiment_id=row.experiment_id,
        verdict_id=row.verdict_id,
        evidence={
            **lineage_of(session, candidate),
            "approval_id": row.approval_id,
            "asked_by": row.asked_by,
            "asked_for": row.asked_for,
        },
    )
    moved = move_champion(session, move)
    row.promotion_id = moved.promotion_id
    end(session, row, GRANTED, order.actor, order.reason)
    if row.experiment_id is not None:
        watch_winner(session, row.experiment_id)
    return moved
