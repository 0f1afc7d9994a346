"""Versions of prompts, and the labels that name them."""

import sqlalchemy as sa
from alembic import op

from gateway.database import JsonText, Utc

revision = "0003_prompts"
down_revision = "0002_lifecycle"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "prompt_version",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("content", JsonText, nullable=False),
        sa.Column("git_sha", sa.String(64)),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_prompt_version"),
    )
    op.create_index("ix_prompt_version_content_hash", "prompt_version", ["content_hash"])
    op.create_table(
        "prompt_label",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "label", name="pk_prompt_label"),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["prompt_version.name", "prompt_version.version"],
            name="fk_prompt_label_prompt_version",
        ),
    )
