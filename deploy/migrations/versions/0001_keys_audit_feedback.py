"""Keys, teams, the version counter, the audit trail and feedback."""

import sqlalchemy as sa
from alembic import op

from gateway.database import JsonText, Utc

revision = "0001_keys_audit_feedback"
down_revision = None

LIVE_ALIAS = sa.text("deleted_at IS NULL AND alias IS NOT NULL")
AUDIT_REFUSAL = "the audit trail is append-only"
DELETED_REFUSAL = "a deleted key or team never comes back"


def upgrade() -> None:
    """Make the tables, and the triggers that guard them."""
    _version_counter()
    _teams()
    _keys()
    _audit()
    _feedback()
    if op.get_bind().dialect.name == "postgresql":
        _postgres_triggers()
    else:
        _sqlite_triggers()


def _version_counter() -> None:
    table = op.create_table(
        "state_version",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_state_version"),
    )
    op.bulk_insert(table, [{"id": 1, "version": 0}])


def _teams() -> None:
    op.create_table(
        "team",
        sa.Column("team_id", sa.String(128), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("alias", sa.String(128)),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("deleted_at", Utc),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("team_id", name="pk_team"),
    )
    _live_alias("team")
    op.create_index("ix_team_version", "team", ["version"])


def _keys() -> None:
    op.create_table(
        "virtual_key",
        sa.Column("key_id", sa.String(36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("team_id", sa.String(128)),
        sa.Column("user_id", sa.String(128)),
        sa.Column("alias", sa.String(128)),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("expires_at", Utc),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("bodies", sa.String(8), nullable=False),
        sa.Column("unknown_fields", sa.String(8), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("deleted_at", Utc),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_virtual_key"),
        sa.UniqueConstraint("digest", name="uq_virtual_key_digest"),
        sa.ForeignKeyConstraint(["team_id"], ["team.team_id"], name="fk_virtual_key_team_id"),
    )
    _live_alias("virtual_key")
    op.create_index("ix_virtual_key_version", "virtual_key", ["version"])
    op.create_index("ix_virtual_key_team_id", "virtual_key", ["team_id"])


def _live_alias(table: str) -> None:
    op.create_index(
        f"uq_{table}_live_alias",
        table,
        ["tenant", "alias"],
        unique=True,
        sqlite_where=LIVE_ALIAS,
        postgresql_where=LIVE_ALIAS,
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("ts", Utc, nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        sa.Column("evidence", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])
    op.create_index("ix_audit_action", "audit", ["action"])


def _feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.String(36), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("client_id", sa.String(128)),
        sa.Column("key_id", sa.String(36), nullable=False),
        sa.Column("reference", sa.String(256)),
        sa.Column("request_id", sa.String(36)),
        sa.Column("episode_id", sa.String(128)),
        sa.Column("metric_name", sa.String(128), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("value", JsonText, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("feedback_id", name="pk_feedback"),
        sa.UniqueConstraint("tenant", "client_id", name="uq_feedback_tenant_client_id"),
    )
    pending = sa.text("state = 'pending'")
    op.create_index("ix_feedback_request_id", "feedback", ["request_id"])
    op.create_index("ix_feedback_episode_id", "feedback", ["episode_id"])
    op.create_index(
        "ix_feedback_pending",
        "feedback",
        ["feedback_id"],
        sqlite_where=pending,
        postgresql_where=pending,
    )


def _sqlite_triggers() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{AUDIT_REFUSAL}'); END"
        )
    # REPLACE INTO removes a row without a DELETE trigger.
    op.execute(
        "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
        f"BEGIN SELECT RAISE(ABORT, '{AUDIT_REFUSAL}'); END"
    )
    for table in ("team", "virtual_key"):
        op.execute(
            f"CREATE TRIGGER {table}_stays_deleted BEFORE UPDATE ON {table} "
            "WHEN OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL "
            f"BEGIN SELECT RAISE(ABORT, '{DELETED_REFUSAL}'); END"
        )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0]; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit "
        f"FOR EACH ROW EXECUTE FUNCTION refuse_change('{AUDIT_REFUSAL}')"
    )
    op.execute(
        "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit "
        f"FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('{AUDIT_REFUSAL}')"
    )
    for table in ("team", "virtual_key"):
        op.execute(
            f"CREATE TRIGGER {table}_stays_deleted BEFORE UPDATE ON {table} FOR EACH ROW "
            "WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL) "
            f"EXECUTE FUNCTION refuse_change('{DELETED_REFUSAL}')"
        )
