"""The state database: the one declarative base, connections, transactions and the version counter.

Invariants: every change goes through `Database.transaction`, which commits whole or not at all.
Every change of a key or a team takes a number from `next_version` in its own transaction, and the
counter's row stays locked until the commit: who has seen number n can see every change up to n.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    Text,
    TypeDecorator,
    create_engine,
    event,
    make_url,
    select,
    update,
)
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from gateway.errors import BadRequest

BUSY_SECONDS = 5
POOL_SIZE = 8
POSTGRES_TIMEOUT_MS = 5000
IMMEDIATE = "llmops_immediate"


class Base(DeclarativeBase):
    """Base of every table in the project; each package declares its own."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Utc(TypeDecorator[datetime]):
    """A moment in UTC, always aware; SQLite keeps it without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """Any JSON value, kept as text: what comes back is what went in (5.0 is not 5, NUL is NUL)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return orjson.dumps(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else orjson.loads(value)


class Conflict(BadRequest):
    """409: the name or id is taken, or the thing is no longer there to be changed."""

    http_status = 409
    code = "conflict"


class StateVersion(Base):
    """One row: the number of the last change of keys and teams."""

    __tablename__ = "state_version"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)


def now() -> datetime:
    """The current moment in UTC."""
    return datetime.now(UTC)


def next_version(session: Session) -> int:
    """Take the next number of a change. Locks the counter until the transaction ends."""
    bump = (
        update(StateVersion)
        .where(StateVersion.id == 1)
        .values(version=StateVersion.version + 1)
        .returning(StateVersion.version)
    )
    return session.execute(bump).scalar_one()


def current_version(session: Session) -> int:
    """The number of the last committed change."""
    return session.execute(select(StateVersion.version).where(StateVersion.id == 1)).scalar_one()


@dataclass(frozen=True, slots=True)
class Database:
    """An engine with its two kinds of session. Safe to share between threads."""

    engine: Engine
    reading: sessionmaker[Session]
    writing: sessionmaker[Session]

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for reading, on one snapshot where the database has them (SQLite)."""
        with self.reading() as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session for writing: committed at the end of the block, rolled back on an error."""
        with self.writing.begin() as session:
            yield session

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A bare connection in one writing transaction (migrations)."""
        with self.engine.execution_options(**{IMMEDIATE: True}).begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open the database at `url` (SQLite or PostgreSQL). Connects when first used.

    Raises:
        ValueError: another kind of database, or its driver is not installed.
    """
    parsed = make_url(url)
    kind = parsed.get_backend_name().replace("postgresql", "postgres")
    if kind == "sqlite":
        engine = _sqlite(parsed)
    elif kind == "postgres":
        engine = _postgres(parsed)
    else:
        raise ValueError(f"database {kind!r} is not supported; use sqlite:/// or postgresql://")
    immediate = engine.execution_options(**{IMMEDIATE: True})
    return Database(
        engine=engine,
        reading=sessionmaker(engine, expire_on_commit=False),
        writing=sessionmaker(immediate, expire_on_commit=False),
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        pool_size=POOL_SIZE,
        connect_args={"timeout": BUSY_SECONDS},
        json_deserializer=orjson.loads,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own BEGIN is late and leaves out DDL and reads: transactions are begun by us.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # SQLite does not wait (busy_timeout) for the lock that the first switch needs.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(IMMEDIATE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _postgres(url: URL) -> Engine:
    if find_spec("psycopg") is None:
        raise ValueError("PostgreSQL needs its driver: pip install 'psycopg[binary]'")
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        json_deserializer=orjson.loads,
        connect_args={
            "connect_timeout": POSTGRES_TIMEOUT_MS // 1000,
            "options": f"-c statement_timeout={POSTGRES_TIMEOUT_MS} -c timezone=UTC",
            "tcp_user_timeout": POSTGRES_TIMEOUT_MS,
        },
    )
