"""Virtual keys and teams: their life, their limits, and what is stored of them."""

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from deploy.migrations import upgrade
from gateway.database import Conflict, Database, open_database
from gateway.errors import BadRequest, NotFound
from gateway.key_fields import parse_duration
from gateway.key_ring import KeyRing
from gateway.keys import TOKEN, KeyFilter, KeyStore, allowed_models, digest, new_token

pytest_plugins = ("tests.state_databases",)
SECRET = b"digest secret of the tests"


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database, SECRET)


def test_a_key_is_random_and_only_its_digest_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    upgrade(f"sqlite:///{path}")
    database = open_database(f"sqlite:///{path}")
    store = KeyStore(database, SECRET)
    tokens = {store.generate(actor="test")[0] for _ in range(20)}
    database.close()
    assert len(tokens) == 20
    stored = b"".join(part.read_bytes() for part in tmp_path.iterdir())
    for token in tokens:
        assert TOKEN.fullmatch(token)
        assert token.encode() not in stored
        assert token[3:].encode() not in stored
        assert digest(SECRET, token).encode() in stored
        assert digest(b"another secret", token).encode() not in stored


def test_a_key_is_found_by_its_id_its_digest_and_itself(store: KeyStore) -> None:
    token, key = store.generate(actor="test", alias="app", user_id="u", metadata={"x": [1]})
    record = store.info(token)
    assert record == store.info(key.key_id) == store.info(digest(SECRET, token))
    assert (record.alias, record.user_id, record.metadata) == ("app", "u", {"x": [1]})
    assert record.hint == f"sk-…{token[-4:]}"
    for unknown in ("sk-" + "x" * 43, "0" * 64, "nonsense", "\x00", "\ud800", ""):
        with pytest.raises(NotFound):
            store.info(unknown)


def test_a_plaintext_is_adopted_once(store: KeyStore) -> None:
    token = new_token()
    assert store.generate(actor="test", key=token)[0] == token
    with pytest.raises(Conflict):
        store.generate(actor="test", key=token)
    store.delete(token, actor="test")
    with pytest.raises(Conflict):
        store.generate(actor="test", key=token)
    for weak in ("sk-1234", "", "password" * 8, "sk-" + "ä" * 40, "sk-" + "a" * 40 + "\n"):
        with pytest.raises(BadRequest):
            store.generate(actor="test", key=weak)


def test_an_alias_is_taken_while_its_key_lives(store: KeyStore) -> None:
    token, _ = store.generate(actor="test", alias="app")
    other, _ = store.generate(actor="test", alias="other")
    store.generate(actor="test", alias="app", tenant="elsewhere")
    with pytest.raises(Conflict):
        store.generate(actor="test", alias="app")
    with pytest.raises(Conflict):
        store.update(other, actor="test", alias="app")
    store.delete(token, actor="test")
    store.generate(actor="test", alias="app")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"alias": ""}, "alias"),
        ({"alias": "a\x00b"}, "alias"),
        ({"alias": "x" * 129}, "alias"),
        ({"alias": " a"}, "alias"),
        ({"models": "gpt"}, "models"),
        ({"models": [""]}, "models"),
        ({"models": [None]}, "models"),
        ({"models": ["m"] * 1001}, "models"),
        ({"duration": "0d"}, "duration"),
        ({"duration": "tomorrow"}, "duration"),
        ({"duration": "999999999d"}, "duration"),
        ({"duration": 5}, "duration"),
        ({"metadata": {"a": "x" * 20000}}, "metadata"),
        ({"metadata": {"a": "\x00"}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": {"a": object()}}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"blocked": "yes"}, "blocked"),
        ({"bodies": "some"}, "bodies"),
        ({"unknown_fields": None}, "unknown_fields"),
        ({"rpm": 1}, "rpm"),
    ],
)
def test_wrong_fields_are_refused_by_name(
    store: KeyStore, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        store.generate(actor="test", **fields)
    assert refused.value.param == param
    assert store.count() == 0


def test_durations() -> None:
    assert parse_duration("90s").total_seconds() == 90
    assert parse_duration("30m").total_seconds() == 1800
    assert parse_duration("12h").total_seconds() == 12 * 3600
    assert parse_duration("2w").days == 14
    assert parse_duration("1mo").days == 30


def test_a_key_expires(store: KeyStore) -> None:
    before = time.time()
    token, key = store.generate(actor="test", duration="60s")
    assert key.expires_at is not None
    assert before + 59 < key.expires_at < time.time() + 61
    assert key.usable(key.expires_at - 0.001)
    assert not key.usable(key.expires_at)
    store.update(token, actor="test", duration=None)
    assert store.info(token).expires_at is None


def test_models_of_a_key_are_within_its_teams() -> None:
    assert allowed_models([], []) == frozenset()
    assert allowed_models(["a"], []) == {"a"}
    assert allowed_models([], ["a", "b"]) == {"a", "b"}
    assert allowed_models(["a", "c"], ["a", "b"]) == {"a"}
    nothing = allowed_models(["c"], ["a"])
    assert nothing
    assert not nothing.intersection({"a", "c"})


def test_a_team_lends_its_tenant_and_its_limits(store: KeyStore) -> None:
    team = store.team_new(actor="test", alias="blue", tenant="acme", models=["a", "b"])
    _, key = store.generate(actor="test", team_id="blue", models=["b", "c"])
    assert (key.tenant, key.team, key.team_id) == ("acme", "blue", team.team_id)
    assert key.may_use("b")
    assert not key.may_use("a")
    assert not key.may_use("c")
    with pytest.raises(BadRequest, match="tenant"):
        store.generate(actor="test", team_id="blue", tenant="other")
    with pytest.raises(NotFound):
        store.generate(actor="test", team_id="no such team")
    stranger, _ = store.generate(actor="test", tenant="other")
    with pytest.raises(BadRequest, match="tenant"):
        store.update(stranger, actor="test", team_id="blue")
    with pytest.raises(BadRequest, match="tenant"):
        store.update(stranger, actor="test", tenant="acme")
    store.team_delete("blue", actor="test")
    assert store.info(key.key_id).deleted_at is not None
    assert store.info(stranger).deleted_at is None
    with pytest.raises(NotFound):
        store.team_update(team.team_id, actor="test", alias="again")


def test_teams_of_two_tenants_may_share_an_alias(store: KeyStore) -> None:
    first = store.team_new(actor="test", alias="blue", tenant="a")
    store.team_new(actor="test", alias="blue", tenant="b")
    with pytest.raises(Conflict):
        store.team_info("blue")
    assert store.team_info(first.team_id).tenant == "a"
    assert [team.tenant for team in store.team_list()] == ["a", "b"]
    with pytest.raises(Conflict):
        store.team_new(actor="test", alias="blue", tenant="a")
    with pytest.raises(Conflict):
        store.team_new(actor="test", team_id=first.team_id)


def test_lists_are_filtered_and_paged(store: KeyStore) -> None:
    for number in range(5):
        store.generate(actor="test", tenant="a" if number % 2 else "b", user_id=f"u{number}")
    gone, _ = store.generate(actor="test", tenant="a")
    store.delete(gone, actor="test")
    assert store.count() == 5
    assert store.count(KeyFilter(tenant="a")) == 2
    assert store.count(KeyFilter(tenant="a", deleted=True)) == 3
    assert [key.user_id for key in store.list(limit=2, offset=1)] == ["u3", "u2"]
    assert [key.tenant for key in store.list(KeyFilter(user_id="u1"))] == ["a"]


def test_changes_from_threads_all_count(store: KeyStore) -> None:
    token, _ = store.generate(actor="test", metadata={})
    failures: list[Exception] = []

    def change(number: int) -> None:
        try:
            store.update(token, actor=f"t{number}", metadata={"by": number})
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with store.database.session() as session:
        rows = session.execute(text("SELECT count(*) FROM audit WHERE action='key.update'"))
        assert rows.scalar_one() == 8


def test_the_database_itself_keeps_a_deleted_key_deleted(store: KeyStore) -> None:
    token, _ = store.generate(actor="test")
    store.delete(token, actor="test")
    with (
        pytest.raises(DBAPIError, match="never comes back"),
        store.database.transaction() as session,
    ):
        session.execute(text("UPDATE virtual_key SET deleted_at = NULL"))
    with pytest.raises(NotFound):
        store.unblock(token, actor="test")


class KeyLife(RuleBasedStateMachine):
    """Any order of changes, seen by a ring at any moment, against a plain model of the keys."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="llmops-keys-"))
        url = f"sqlite:///{self.home / 'state.db'}"
        upgrade(url)
        self.database = open_database(url)
        self.store = KeyStore(self.database, SECRET)
        self.ring = KeyRing(self.database, SECRET)
        self.late = KeyRing(self.database, SECRET)
        self.ring.load()
        self.expected: dict[str, bool] = {}
        self.deleted: set[str] = set()
        self.teams: dict[str, str] = {}

    @rule(target=live, team=st.sampled_from(["none", "blue", "red"]))
    def generate(self, team: str) -> str:
        if team != "none" and team not in self.teams.values():
            self.teams[self.store.team_new(actor="test", alias=team).team_id] = team
        team_id = None if team == "none" else team
        token, key = self.store.generate(actor="test", team_id=team_id)
        self.expected[token] = key.blocked
        return token

    @rule(token=live)
    def block(self, token: str) -> None:
        self.change(token, "block", blocked=True)

    @rule(token=live)
    def unblock(self, token: str) -> None:
        self.change(token, "unblock", blocked=False)

    def change(self, token: str, name: str, *, blocked: bool) -> None:
        if token in self.deleted:
            with pytest.raises(NotFound):
                getattr(self.store, name)(token, actor="test")
            return
        getattr(self.store, name)(token, actor="test")
        self.expected[token] = blocked

    @rule(token=live)
    def delete(self, token: str) -> None:
        if token not in self.deleted:
            self.store.delete(token, actor="test")
            self.deleted.add(token)

    @rule(token=live)
    def adopt_again(self, token: str) -> None:
        with pytest.raises(Conflict):
            self.store.generate(actor="test", key=token)

    @rule(target=live, team=st.sampled_from(["blue", "red"]))
    def delete_team(self, team: str) -> Any:
        if team in self.teams.values():
            team_id = self.store.team_info(team).team_id
            keys = {key.token for key in self.store.list(KeyFilter(team_id=team_id), limit=1000)}
            self.store.team_delete(team, actor="test")
            del self.teams[team_id]
            self.deleted |= {t for t in self.expected if digest(SECRET, t) in keys}
        return multiple()

    @rule()
    def late_ring_looks(self) -> None:
        self.late.load()
        self.check(self.late)

    @invariant()
    def the_ring_knows_what_is_true(self) -> None:
        self.ring.load()
        self.check(self.ring)

    def check(self, ring: KeyRing) -> None:
        assert len(ring) == len(self.expected) - len(self.deleted)
        for token, blocked in self.expected.items():
            key = ring.find(token)
            if token in self.deleted:
                assert key is None, "a deleted key came back"
            else:
                assert key is not None
                assert key.blocked == blocked

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.home)


KeyLife.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestKeyLife = KeyLife.TestCase
