"""The tables of teams and virtual keys, and their rows as plain values.

Invariants: a key's plaintext is nowhere; its keyed digest is only in `digest`. A deleted row stays
(the request log refers to it) and can never come back: the database refuses it. `version` is the
number of the change (`gateway.database.next_version`) that wrote the row last.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.database import Base, Utc

LIVE_ALIAS = text("deleted_at IS NULL AND alias IS NOT NULL")


class TeamRow(Base):
    """A team: what its keys may use at most."""

    __tablename__ = "team"
    __table_args__ = (
        Index(
            "uq_team_live_alias",
            "tenant",
            "alias",
            unique=True,
            sqlite_where=LIVE_ALIAS,
            postgresql_where=LIVE_ALIAS,
        ),
        Index("ix_team_version", "version"),
    )

    team_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(128))
    alias: Mapped[str | None] = mapped_column(String(128))
    models: Mapped[list[str]] = mapped_column(JSON)
    blocked: Mapped[bool]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    created_at: Mapped[datetime] = mapped_column(Utc)
    deleted_at: Mapped[datetime | None] = mapped_column(Utc)
    version: Mapped[int] = mapped_column(BigInteger)

    def state(self) -> dict[str, Any]:
        """Everything that may be shown."""
        return {
            "team_id": self.team_id,
            "tenant": self.tenant,
            "alias": self.alias,
            "models": list(self.models),
            "blocked": self.blocked,
            "metadata": dict(self.details),
            "created_at": iso(self.created_at),
            "deleted_at": iso(self.deleted_at),
        }


class KeyRow(Base):
    """A virtual key."""

    __tablename__ = "virtual_key"
    __table_args__ = (
        Index(
            "uq_virtual_key_live_alias",
            "tenant",
            "alias",
            unique=True,
            sqlite_where=LIVE_ALIAS,
            postgresql_where=LIVE_ALIAS,
        ),
        Index("ix_virtual_key_version", "version"),
        Index("ix_virtual_key_team_id", "team_id"),
    )

    key_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    tenant: Mapped[str] = mapped_column(String(128))
    team_id: Mapped[str | None] = mapped_column(ForeignKey("team.team_id"))
    user_id: Mapped[str | None] = mapped_column(String(128))
    alias: Mapped[str | None] = mapped_column(String(128))
    models: Mapped[list[str]] = mapped_column(JSON)
    expires_at: Mapped[datetime | None] = mapped_column(Utc)
    blocked: Mapped[bool]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    bodies: Mapped[str] = mapped_column(String(8))
    unknown_fields: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(Utc)
    deleted_at: Mapped[datetime | None] = mapped_column(Utc)
    version: Mapped[int] = mapped_column(BigInteger)

    def state(self) -> dict[str, Any]:
        """Everything that may be shown: no digest."""
        return {
            "key_id": self.key_id,
            "hint": self.hint,
            "tenant": self.tenant,
            "team_id": self.team_id,
            "user_id": self.user_id,
            "alias": self.alias,
            "models": list(self.models),
            "expires_at": iso(self.expires_at),
            "blocked": self.blocked,
            "metadata": dict(self.details),
            "bodies": self.bodies,
            "unknown_fields": self.unknown_fields,
            "created_at": iso(self.created_at),
            "deleted_at": iso(self.deleted_at),
        }


def iso(moment: datetime | None) -> str | None:
    """ISO 8601, or None."""
    return None if moment is None else moment.isoformat()
