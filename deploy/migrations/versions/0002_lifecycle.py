"""Splits, verdicts, and the lifecycle from data set to promotion."""

import sqlalchemy as sa
from alembic import op

from gateway.database import JsonText, Utc

revision = "0002_lifecycle"
down_revision = "0001_keys_audit_feedback"

UNDER_WAY = sa.text("state = 'running'")


def upgrade() -> None:
    """Make the tables, each after what it refers to."""
    _split()
    _verdict()
    _dataset()
    _training()
    _model_version()
    _run()
    _experiment()
    _promotion()


def _split() -> None:
    op.create_table(
        "split",
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("experiment_id", sa.String(36)),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("arms", JsonText, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("alias", name="pk_split"),
    )


def _verdict() -> None:
    op.create_table(
        "verdict",
        sa.Column("verdict_id", sa.String(36), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("baseline", sa.String(256), nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("metrics", JsonText, nullable=False),
        sa.Column("reasons", JsonText, nullable=False),
        sa.Column("evidence", JsonText, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("verdict_id", name="pk_verdict"),
    )
    op.create_index("ix_verdict_subject", "verdict", ["subject"])


def _dataset() -> None:
    op.create_table(
        "dataset",
        sa.Column("dataset_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("manifest", JsonText, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", name="pk_dataset"),
    )
    op.create_table(
        "dataset_example",
        sa.Column("dataset_id", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("request_id", sa.String(36), nullable=False),
        sa.Column("feedback_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", "position", name="pk_dataset_example"),
        _reference("dataset_example", "dataset_id", "dataset"),
    )
    op.create_index("ix_dataset_example_request_id", "dataset_example", ["request_id"])
    op.create_index("ix_dataset_example_feedback_id", "dataset_example", ["feedback_id"])


def _training() -> None:
    op.create_table(
        "training",
        sa.Column("training_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("dataset_id", sa.String(32), nullable=False),
        sa.Column("base_model", sa.String(256), nullable=False),
        sa.Column("base_digest", sa.String(64), nullable=False),
        sa.Column("adapter", sa.String(128), nullable=False),
        sa.Column("adapter_digest", sa.String(64), nullable=False),
        sa.Column("adapter_path", sa.Text, nullable=False),
        sa.Column("configuration", JsonText, nullable=False),
        sa.Column("metrics", JsonText, nullable=False),
        sa.Column("git_sha", sa.String(64)),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("training_id", name="pk_training"),
        _reference("training", "dataset_id", "dataset"),
    )
    op.create_index("ix_training_dataset_id", "training", ["dataset_id"])
    op.create_index("ix_training_adapter", "training", ["adapter"])


def _model_version() -> None:
    op.create_table(
        "model_version",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("training_id", sa.String(32), nullable=False),
        sa.Column("verdict_id", sa.String(36)),
        sa.Column("adapter", sa.String(128), nullable=False),
        sa.Column("adapter_path", sa.Text, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_model_version"),
        _reference("model_version", "training_id", "training"),
        _reference("model_version", "verdict_id", "verdict"),
    )
    op.create_index("ix_model_version_adapter", "model_version", ["adapter"])


def _run() -> None:
    op.create_table(
        "run",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("spec", JsonText, nullable=False),
        sa.Column("dataset_id", sa.String(32)),
        sa.Column("training_id", sa.String(32)),
        sa.Column("verdict_id", sa.String(36)),
        sa.Column("version", sa.String(16)),
        sa.Column("git_sha", sa.String(64)),
        sa.Column("started_at", Utc, nullable=False),
        sa.Column("ended_at", Utc),
        sa.PrimaryKeyConstraint("run_id", name="pk_run"),
    )
    _one_under_way("run", "name")


def _experiment() -> None:
    op.create_table(
        "experiment",
        sa.Column("experiment_id", sa.String(36), nullable=False),
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.String(16)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("arms", JsonText, nullable=False),
        sa.Column("plan", JsonText, nullable=False),
        sa.Column("verdict_id", sa.String(36)),
        sa.Column("message", sa.Text),
        sa.Column("started_at", Utc, nullable=False),
        sa.Column("ended_at", Utc),
        sa.PrimaryKeyConstraint("experiment_id", name="pk_experiment"),
        _reference("experiment", "verdict_id", "verdict"),
    )
    _one_under_way("experiment", "alias")
    op.create_index("ix_experiment_model_version", "experiment", ["name", "version"])


def _promotion() -> None:
    op.create_table(
        "promotion",
        sa.Column("promotion_id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("from_version", sa.String(16)),
        sa.Column("to_version", sa.String(16)),
        sa.Column("experiment_id", sa.String(36)),
        sa.Column("verdict_id", sa.String(36)),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("promotion_id", name="pk_promotion"),
        _reference("promotion", "experiment_id", "experiment"),
        _reference("promotion", "verdict_id", "verdict"),
    )
    op.create_index("ix_promotion_name", "promotion", ["name"])


def _reference(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{other}.{column}"], name=f"fk_{table}_{column}")


def _one_under_way(table: str, column: str) -> None:
    op.create_index(
        f"uq_{table}_under_way",
        table,
        [column],
        unique=True,
        sqlite_where=UNDER_WAY,
        postgresql_where=UNDER_WAY,
    )
