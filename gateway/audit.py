"""The append-only audit trail: who or what changed which thing, when, why, on which evidence.

Invariants: a row is written in the transaction of the change that it tells of, so neither exists
without the other. The database itself refuses to change or remove a row (triggers, made by the
migrations). No secret, and no digest of one, is ever in a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import uuid_utils
from sqlalchemy import JSON, Index, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from gateway.database import Base, Utc, now
from gateway.errors import BadRequest

JsonObject = Mapping[str, Any]


class AuditRow(Base):
    """One change."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_subject", "subject"), Index("ix_audit_action", "action"))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    ts: Mapped[datetime] = mapped_column(Utc)
    actor: Mapped[str] = mapped_column(String(256))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(256))
    reason: Mapped[str | None] = mapped_column(Text)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


def require_reason(reason: str) -> None:
    """BadRequest where a person's order does not say why: who reads the trail wants to know."""
    if not reason.strip():
        raise BadRequest("reason: say why, for the audit trail", param="reason")


@dataclass(frozen=True, slots=True)
class Change:
    """What the audit trail is told.

    Attributes:
        actor: person or process, such as `admin` or `cli:anna`.
        action: what was done, such as `key.block`.
        subject: what it was done to, such as `key:0192…`.
        before, after: the thing's state without secrets; None where it did not exist.
        evidence: what the decision rests on (links, verdicts).
    """

    actor: str
    action: str
    subject: str
    reason: str | None = None
    before: JsonObject | None = None
    after: JsonObject | None = None
    evidence: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A row as it is shown."""

    id: str
    ts: datetime
    change: Change

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        change = self.change
        return {
            "id": self.id,
            "ts": self.ts.isoformat(),
            "actor": change.actor,
            "action": change.action,
            "subject": change.subject,
            "reason": change.reason,
            "before": change.before,
            "after": change.after,
            "evidence": change.evidence,
        }


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows to list; None is any. `before` is the id of the last row already seen."""

    subject: str | None = None
    action: str | None = None
    actor: str | None = None
    before: str | None = None
    limit: int = field(default=50)


def record(session: Session, change: Change) -> str:
    """Add `change` to the trail inside the caller's transaction; returns the row's id (UUIDv7)."""
    row = AuditRow(
        id=str(uuid_utils.uuid7()),
        ts=now(),
        actor=change.actor[:256],
        action=change.action,
        subject=change.subject[:256],
        reason=change.reason,
        before=_plain(change.before),
        after=_plain(change.after),
        evidence=_plain(change.evidence),
    )
    session.add(row)
    return row.id


def entries(session: Session, wanted: AuditFilter) -> list[AuditEntry]:
    """The newest rows that fit `wanted`, newest first."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(wanted.limit)
    if wanted.subject is not None:
        query = query.where(AuditRow.subject == wanted.subject)
    if wanted.action is not None:
        query = query.where(AuditRow.action == wanted.action)
    if wanted.actor is not None:
        query = query.where(AuditRow.actor == wanted.actor)
    if wanted.before is not None:
        query = query.where(AuditRow.id < wanted.before)
    return [_entry(row) for row in session.scalars(query)]


def _plain(value: JsonObject | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _entry(row: AuditRow) -> AuditEntry:
    change = Change(
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        reason=row.reason,
        before=row.before,
        after=row.after,
        evidence=row.evidence,
    )
    return AuditEntry(id=row.id, ts=row.ts, change=change)
