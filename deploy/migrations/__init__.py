"""The one history of the state database's schema, applied with `upgrade`.

Revisions are the files of `versions/`, applied in the order of their names; the name without
`.py` is the revision's id. A database that is at the newest one costs a single SELECT.
"""

from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from gateway.database import Database, open_database

HERE = Path(__file__).parent
POSTGRES_LOCK = 4_707_196_021


def head() -> str:
    """Id of the newest revision."""
    return max(path.stem for path in (HERE / "versions").glob("[0-9]*.py"))


def upgrade(database_url: str) -> None:
    """Bring the database at `database_url` to the newest schema; SQLite's file is made if missing.

    Safe to run from several processes at once: one does it, the others wait for it.

    Raises:
        ValueError: not a database that is supported.
        sqlalchemy.exc.SQLAlchemyError: it cannot be reached or changed; then it is as it was.
    """
    database = open_database(database_url)
    try:
        make_folder(database)
        if revision(database) != head():
            with database.connection() as connection:
                _run(connection)
    finally:
        database.close()


def revision(database: Database) -> str | None:
    """The revision that the database is at; None if it was never set up."""
    try:
        with database.engine.connect() as connection:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    except (OperationalError, ProgrammingError) as error:
        if "alembic_version" in str(error.orig):
            return None
        raise
    return None if found is None else str(found)


def make_folder(database: Database) -> None:
    """Make the folder that SQLite's file goes into, for its owner alone."""
    url = database.engine.url
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def _run(connection: Connection) -> None:
    # Alembic takes 0.2 s to import, which a start with nothing to do need not pay.
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
