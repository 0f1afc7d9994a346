"""The outbox for the Kubeflow Model Registry: what it is to be told, once each.

A record is written in the transaction of the registration or move that it tells of, whether a
registry is configured or not: one that is configured later is told the whole history. The
controller delivers (`pipelines.registry_recorder`).
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipelines.tables import ModelVersionRow, PromotionRow, RegistryRecordRow

REGISTER = "register"
PENDING, SENT = "pending", "sent"


def note_registration(session: Session, row: ModelVersionRow) -> None:
    """Tell of a version, in the transaction that makes its row."""
    session.add(
        RegistryRecordRow(
            record_id=f"{row.name}/{row.version}",
            kind=REGISTER,
            name=row.name,
            version=row.version,
            state=PENDING,
            attempts=0,
            created_at=row.created_at,
            next_at=row.created_at,
        )
    )


def note_move(session: Session, row: PromotionRow) -> None:
    """Tell of a promotion or rollback, in the transaction that makes its row."""
    session.add(
        RegistryRecordRow(
            record_id=row.promotion_id,
            kind=row.kind,
            name=row.name,
            version=row.to_version,
            state=PENDING,
            attempts=0,
            created_at=row.created_at,
            next_at=row.created_at,
        )
    )


def records(session: Session, state: str | None, limit: int) -> Sequence[RegistryRecordRow]:
    """The newest records in `state` (None: in any), newest first."""
    query = select(RegistryRecordRow).order_by(RegistryRecordRow.created_at.desc()).limit(limit)
    if state is not None:
        query = query.where(RegistryRecordRow.state == state)
    return session.scalars(query).all()
