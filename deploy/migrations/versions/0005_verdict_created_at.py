"""Verdicts by the moment they were made: triggers look for new ones every second."""

from alembic import op

revision = "0005_verdict_created_at"
down_revision = "0004_triggers"


def upgrade() -> None:
    """Make the index. It holds the ids as well, so that a look need not touch the verdicts."""
    op.create_index("ix_verdict_created_at_verdict_id", "verdict", ["created_at", "verdict_id"])
