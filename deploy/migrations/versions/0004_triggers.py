"""Scheduled runs, and what verdicts have triggered."""

import sqlalchemy as sa
from alembic import op

from gateway.database import JsonText, Utc

revision = "0004_triggers"
down_revision = "0003_prompts"

UNDER_WAY = sa.text("state = 'running'")


def upgrade() -> None:
    """Make the tables."""
    _scheduled_run()
    _trigger_event()


def _scheduled_run() -> None:
    op.create_table(
        "scheduled_run",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("job", sa.String(128), nullable=False),
        sa.Column("command", JsonText, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("due_at", Utc, nullable=False),
        sa.Column("missed", sa.Integer, nullable=False),
        sa.Column("exit_code", sa.Integer),
        sa.Column("message", sa.Text),
        sa.Column("started_at", Utc, nullable=False),
        sa.Column("ended_at", Utc),
        sa.PrimaryKeyConstraint("run_id", name="pk_scheduled_run"),
    )
    op.create_index(
        "uq_scheduled_run_under_way",
        "scheduled_run",
        ["job"],
        unique=True,
        sqlite_where=UNDER_WAY,
        postgresql_where=UNDER_WAY,
    )
    op.create_index("ix_scheduled_run_job_due_at", "scheduled_run", ["job", "due_at"])


def _trigger_event() -> None:
    op.create_table(
        "trigger_event",
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("verdict_id", sa.String(36), nullable=False),
        sa.Column("rule", sa.String(128), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("verdict_at", Utc, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("next_at", Utc, nullable=False),
        sa.Column("ended_at", Utc),
        sa.PrimaryKeyConstraint("event_id", name="pk_trigger_event"),
        sa.UniqueConstraint("verdict_id", "rule", "action", name="uq_trigger_event_once"),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["verdict.verdict_id"], name="fk_trigger_event_verdict_id"
        ),
    )
    op.create_index("ix_trigger_event_rule_subject", "trigger_event", ["rule", "subject"])
    op.create_index("ix_trigger_event_state", "trigger_event", ["state"])
