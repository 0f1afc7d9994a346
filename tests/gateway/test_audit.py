"""The audit trail: complete, append-only, without secrets."""

from typing import Any

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.audit import AuditFilter, entries
from gateway.database import Database
from gateway.keys import KeyStore, digest

pytest_plugins = ("tests.state_databases",)
SECRET = b"digest secret of the tests"


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database, SECRET)


def actions(store: KeyStore, **wanted: Any) -> list[str]:
    with store.database.session() as session:
        return [entry.change.action for entry in entries(session, AuditFilter(**wanted))]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET reason = 'nicer'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT id, ts, 'nobody', action, subject, reason, "
        "before, after, evidence FROM audit",
        "TRUNCATE audit",
    ],
)
def test_the_database_refuses_to_change_the_trail(store: KeyStore, statement: str) -> None:
    kind = store.database.engine.dialect.name
    if ("TRUNCATE" in statement and kind == "sqlite") or (
        "REPLACE" in statement and kind != "sqlite"
    ):
        pytest.skip(f"{kind} has no such statement")
    store.generate(actor="test")
    with (
        pytest.raises(DBAPIError, match="append-only"),
        store.database.transaction() as session,
    ):
        session.execute(text(statement))
    assert actions(store) == ["key.generate"]


def test_every_change_has_its_row(store: KeyStore) -> None:
    team = store.team_new(actor="anna", alias="blue").team_id
    _, key = store.generate(actor="anna", team_id=team, reason="new application")
    store.update(key.key_id, actor="ben", alias="chat")
    store.block(key.key_id, actor="ben", reason="leaked")
    store.block(key.key_id, actor="ben", reason="again: nothing changes, so no row")
    store.unblock(key.key_id, actor="ben")
    store.delete(key.key_id, actor="ben")
    store.team_update(team, actor="ben", blocked=True)
    store.generate(actor="anna", team_id=team)
    store.team_delete(team, actor="ben")
    assert actions(store)[::-1] == [
        "team.new", "key.generate", "key.update", "key.block", "key.unblock", "key.delete",
        "team.update", "key.generate", "key.delete", "team.delete",
    ]  # fmt: skip
    assert actions(store, subject=f"key:{key.key_id}", actor="ben", action="key.block") == [
        "key.block"
    ]
    with store.database.session() as session:
        wanted = AuditFilter(subject=f"key:{key.key_id}", action="key.block")
        change = entries(session, wanted)[0].change
    assert change.before is not None
    assert change.after is not None
    assert (change.before["blocked"], change.after["blocked"]) == (False, True)
    assert change.reason == "leaked"


def test_no_row_holds_a_secret(store: KeyStore) -> None:
    token, key = store.generate(actor="test", metadata={"a": 1})
    store.update(key.key_id, actor="test", alias="b")
    store.delete(token, actor="test")
    with store.database.session() as session:
        shown = [entry.as_dict() for entry in entries(session, AuditFilter())]
    written = orjson.dumps(shown).decode()
    assert len(shown) == 3
    assert token not in written
    assert digest(SECRET, token) not in written


def test_pages_of_the_trail(store: KeyStore) -> None:
    for _ in range(5):
        store.generate(actor="test")
    with store.database.session() as session:
        first = entries(session, AuditFilter(limit=3))
        rest = entries(session, AuditFilter(limit=3, before=first[-1].id))
    ids = [entry.id for entry in (*first, *rest)]
    assert len(ids) == 5
    assert ids == sorted(ids, reverse=True)
