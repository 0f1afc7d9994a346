"""Run by Alembic: applies the revisions on the connection that `upgrade` opened."""

from alembic import context

from gateway.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
