"""Versions of every kind of model: what one is served by, not only the name of an adapter."""

import sqlalchemy as sa
from alembic import op

revision = "0006_model_kinds"
down_revision = "0005_verdict_created_at"

RENAMED = {
    "training": {"adapter": "served_name", "adapter_digest": "digest", "adapter_path": "path"},
    "model_version": {"adapter": "served_name", "adapter_path": "path"},
}


def upgrade() -> None:
    """Rename the columns, and say of each training that there was that it is a language model's."""
    for table, columns in RENAMED.items():
        op.drop_index(f"ix_{table}_adapter", table)
        for former, name in columns.items():
            op.execute(f"ALTER TABLE {table} RENAME COLUMN {former} TO {name}")
        op.create_index(f"ix_{table}_served_name", table, ["served_name"])
    op.add_column(
        "training", sa.Column("kind", sa.String(32), nullable=False, server_default="llm")
    )
