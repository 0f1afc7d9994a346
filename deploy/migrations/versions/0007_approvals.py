"""Approvals of promotions, and what the Kubeflow Model Registry is to be told."""

import sqlalchemy as sa
from alembic import op

from gateway.database import Utc

revision = "0007_approvals"
down_revision = "0006_model_kinds"

OPEN = sa.text("state = 'open'")


def upgrade() -> None:
    """Make the tables. What was registered and moved before is to be told too."""
    automatic = sa.Column("approval", sa.String(16), nullable=False, server_default="automatic")
    op.add_column("experiment", automatic)
    _approval()
    _registry_record()
    op.execute(
        "INSERT INTO registry_record"
        " (record_id, kind, name, version, state, attempts, created_at, next_at)"
        " SELECT name || '/' || version, 'register', name, version, 'pending', 0,"
        " created_at, created_at FROM model_version"
    )
    op.execute(
        "INSERT INTO registry_record"
        " (record_id, kind, name, version, state, attempts, created_at, next_at)"
        " SELECT promotion_id, kind, name, to_version, 'pending', 0,"
        " created_at, created_at FROM promotion"
    )


def _approval() -> None:
    op.create_table(
        "approval",
        sa.Column("approval_id", sa.String(36), nullable=False),
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("asked_by", sa.String(256), nullable=False),
        sa.Column("asked_for", sa.Text, nullable=False),
        sa.Column("seen", sa.String(36)),
        sa.Column("experiment_id", sa.String(36)),
        sa.Column("verdict_id", sa.String(36)),
        sa.Column("decided_by", sa.String(256)),
        sa.Column("reason", sa.Text),
        sa.Column("promotion_id", sa.String(36)),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("ended_at", Utc),
        sa.PrimaryKeyConstraint("approval_id", name="pk_approval"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiment.experiment_id"], name="fk_approval_experiment_id"
        ),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["verdict.verdict_id"], name="fk_approval_verdict_id"
        ),
        sa.ForeignKeyConstraint(
            ["promotion_id"], ["promotion.promotion_id"], name="fk_approval_promotion_id"
        ),
    )
    op.create_index(
        "uq_approval_open",
        "approval",
        ["alias"],
        unique=True,
        sqlite_where=OPEN,
        postgresql_where=OPEN,
    )
    op.create_index("ix_approval_model_version", "approval", ["name", "version"])


def _registry_record() -> None:
    op.create_table(
        "registry_record",
        sa.Column("record_id", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.String(16)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("next_at", Utc, nullable=False),
        sa.Column("ended_at", Utc),
        sa.PrimaryKeyConstraint("record_id", name="pk_registry_record"),
    )
    op.create_index("ix_registry_record_state", "registry_record", ["state"])
