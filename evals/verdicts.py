"""Verdicts in the state database: written once, never changed."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from evals.records import Decision, MetricResult, Verdict
from gateway.database import Base, JsonText, Utc


class VerdictRow(Base):
    """One verdict."""

    __tablename__ = "verdict"
    __table_args__ = (
        Index("ix_verdict_subject", "subject"),
        Index("ix_verdict_created_at_verdict_id", "created_at", "verdict_id"),
    )

    verdict_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    subject: Mapped[str] = mapped_column(String(256))
    baseline: Mapped[str] = mapped_column(String(256))
    decision: Mapped[str] = mapped_column(String(16))
    metrics: Mapped[list[dict[str, Any]]] = mapped_column(JsonText)
    reasons: Mapped[list[str]] = mapped_column(JsonText)
    evidence: Mapped[dict[str, Any]] = mapped_column(JsonText)
    created_at: Mapped[datetime] = mapped_column(Utc)


def add_verdict(session: Session, verdict: Verdict) -> None:
    """Store `verdict` in the caller's transaction; the same id again changes nothing."""
    if session.get(VerdictRow, verdict.verdict_id) is not None:
        return
    session.add(
        VerdictRow(
            verdict_id=verdict.verdict_id,
            subject=verdict.subject,
            baseline=verdict.baseline,
            decision=verdict.decision.value,
            metrics=[asdict(metric) for metric in verdict.metrics],
            reasons=list(verdict.reasons),
            evidence=dict(verdict.evidence),
            created_at=verdict.created_at,
        )
    )
    session.flush()  # rows that refer to it may follow in the same transaction


def find_verdict(session: Session, verdict_id: str) -> Verdict | None:
    """The verdict with this id."""
    row = session.get(VerdictRow, verdict_id)
    return None if row is None else verdict_of(row)


def verdicts_on(session: Session, subject: str) -> list[Verdict]:
    """All verdicts on `subject`, oldest first."""
    query = select(VerdictRow).where(VerdictRow.subject == subject)
    return [verdict_of(row) for row in session.scalars(query.order_by(VerdictRow.verdict_id))]


def verdict_of(row: VerdictRow) -> Verdict:
    """The record in a row."""
    return Verdict(
        verdict_id=row.verdict_id,
        subject=row.subject,
        baseline=row.baseline,
        decision=Decision(row.decision),
        metrics=tuple(MetricResult(**metric) for metric in row.metrics),
        reasons=tuple(row.reasons),
        evidence=row.evidence,
        created_at=row.created_at,
    )
