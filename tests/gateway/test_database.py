"""The state database: transactions, the version counter, times."""

import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.migrations import upgrade
from gateway.audit import AuditFilter, Change, entries, record
from gateway.database import Database, current_version, next_version, open_database

pytest_plugins = ("tests.state_databases",)


def test_sqlite_is_opened_durable_and_shared(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    with database.session() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
    }


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match="mysql"):
        open_database("mysql://localhost/x")


def test_numbers_of_changes_are_unique_and_seen_in_order(database: Database) -> None:
    """A number is seen only when every smaller one can be: the counter's row is locked."""
    taken: list[int] = []

    def take() -> None:
        for _ in range(10):
            with database.transaction() as session:
                number = next_version(session)
                assert number == len(taken) + 1, "another change came in between"
                taken.append(number)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 41))
    with database.session() as session:
        assert current_version(session) == 40


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction() as session:
        next_version(session)
        record(session, Change("test", "thing.new", "thing:1"))
        session.flush()
        raise RuntimeError
    with database.session() as session:
        assert current_version(session) == 0
        assert entries(session, AuditFilter()) == []


def test_times_are_kept_in_utc(database: Database) -> None:
    with database.transaction() as session:
        record(session, Change("test", "thing.new", "thing:1"))
    with database.session() as session:
        moment = entries(session, AuditFilter())[0].ts
    assert moment.tzinfo is UTC
    assert abs(datetime.now(timezone(timedelta(hours=5))) - moment) < timedelta(seconds=30)


def test_processes_can_open_a_new_file_together(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'state.db'}"
    failures: list[Exception] = []

    def go() -> None:
        try:
            upgrade(url)
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
