"""contract test: what the Kubeflow Model Registry is told of registrations and moves, against a
stand-in over HTTP that is away, slow, broken, or drops the connection after it has stored."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from deploy.migrations import upgrade
from gateway.database import Database, now, open_database
from pipelines.champion import Move, champion_of, hold, move_champion
from pipelines.json_server import JsonServer
from pipelines.kubeflow_registry import KubeflowRegistry
from pipelines.registry_recorder import LONGEST_PAUSE_SECONDS, REFUSED_PAUSE_SECONDS, Recorder
from pipelines.registry_records import note_registration, records
from pipelines.tables import RegistryRecordRow
from tests.gateway_process import free_port
from tests.pipelines.lifecycle import ALIAS, adapter_name, refuse_writes, seed_version
from tests.pipelines.model_registry_server import Store, model_registry


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


@dataclass
class Office:
    """A state database, the recorder of one registry, and a clock that stands until it is moved."""

    database: Database
    port: int = field(default_factory=free_port)
    seconds: float = 5.0
    token: str | None = None
    moment: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """As after a kill: nothing is remembered but what the database says."""
        url = f"http://127.0.0.1:{self.port}"
        server = JsonServer("the model registry", url, self.token, seconds=self.seconds)
        self.recorder = Recorder(self.database, KubeflowRegistry(server), lambda: self.moment)

    def register(self, *versions: str) -> None:
        for version in versions:
            row = seed_version(self.database, version)
            with self.database.transaction() as session:
                note_registration(session, row)

    def move(self, kind: str, version: str | None, reason: str = "it is better") -> str:
        with self.database.transaction() as session:
            hold(session)
            move = Move(kind, ALIAS, ALIAS, version, "anna", reason)
            return move_champion(session, move).promotion_id

    def step(self, later: float = 0.0) -> list[str]:
        """What was said, failures too."""
        self.moment = max(self.moment, now()) + timedelta(seconds=later)
        return [str(one) for one in asyncio.run(self.recorder.step())]

    def rows(self) -> list[RegistryRecordRow]:
        with self.database.session() as session:
            return list(reversed(records(session, None, 100)))

    def states(self) -> list[str]:
        return [row.state for row in self.rows()]


@pytest.fixture
def office(database: Database) -> Office:
    return Office(database)


@pytest.fixture
def store() -> Store:
    return Store()


def test_versions_and_moves_are_recorded_with_their_ids(office: Office, store: Store) -> None:
    office.register("1", "2")
    office.move("promote", "1")
    promotion = office.move("promote", "2")
    back = office.move("rollback", "1", "it errs")
    with model_registry(store, office.port):
        said = office.step()
        assert len(said) == 5 and set(office.states()) == {"sent"}
        (model,) = store.models
        assert model["name"] == ALIAS
        assert store.properties(model) == {"champion": "1"}
        assert [one["name"] for one in store.versions] == ["1", "2"]
        told = store.properties(store.versions[1])
        assert told["training_id"] == f"{'2':a>32}" and told["dataset_id"] == f"{'2':0>32}"
        assert told["served_name"] == adapter_name("2") and told["verdict_id"]
        files = store.artifacts("model-artifact")
        assert [one["uri"] for one in files] == [f"models:/{ALIAS}/1", f"models:/{ALIAS}/2"]
        assert [one["parent"] for one in files] == [one["id"] for one in store.versions]
        moves = {one["externalId"]: one for one in store.artifacts("doc-artifact")}
        first = store.properties(moves[f"llmops/move/{promotion}"])
        assert (first["from_version"], first["to_version"], first["actor"]) == ("1", "2", "anna")
        gone = moves[f"llmops/move/{back}"]
        assert store.properties(gone)["reason"] == "it errs" and "rollback" in gone["description"]
        assert gone["parent"] == store.versions[0]["id"], "with the version that it went to"
        calls = len(store.calls)
        assert office.step() == [] and len(store.calls) == calls, "nothing is told twice"


def test_a_rollback_to_the_base_model_is_recorded_with_the_version_left(
    office: Office, store: Store
) -> None:
    office.register("1")
    office.move("promote", "1")
    office.move("rollback", None)
    with model_registry(store, office.port):
        office.step()
    assert store.properties(store.models[0]) == {"champion": "base"}
    assert [one["parent"] for one in store.artifacts("doc-artifact")] == [
        store.versions[0]["id"]
    ] * 2


def test_a_registry_that_is_away_loses_nothing(office: Office, store: Store) -> None:
    office.register("1")
    office.move("promote", "1")
    (said,) = office.step()
    assert "the model registry at http://127.0.0.1:" in said and "is away" in said
    assert office.states() == ["pending", "pending"] and "is away" in (
        office.rows()[0].answer or ""
    )
    assert office.step() == [], "it is left alone for a while"
    pauses = [_until_asked(office) for _ in range(10)]
    assert pauses == sorted(pauses) and pauses[-1] <= LONGEST_PAUSE_SECONDS
    office.register("2")
    with model_registry(store, office.port):
        office.step(LONGEST_PAUSE_SECONDS)
    assert office.states() == ["sent"] * 3
    assert [one["name"] for one in store.versions] == ["1", "2"]


def _until_asked(office: Office) -> float:
    """Seconds until a registry that is away is asked again."""
    waited = 0.0
    while not office.step(1.0):
        waited += 1.0
    return waited


FAULTS: dict[str, int | str] = {
    "away in the middle": "cut",
    "stored, then the connection drops": "cut after",
    "500": 500,
    "503": 503,
    "too many requests": 429,
    "not the registry": "no json",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_at_any_call_stores_everything_once(
    office: Office, store: Store, fault: int | str
) -> None:
    """A version and its promotion take eleven calls, the first one's twelve; each meets it once."""
    with model_registry(store, office.port):
        for number in [*range(1, 11), 0]:
            store.script.extend([None] * number + [fault])
            office.register(str(number + 1))
            office.move("promote", str(number + 1))
            for _ in range(2):
                office.step(LONGEST_PAUSE_SECONDS)
            assert not store.script, "the fault was met"
            assert set(office.states()) == {"sent"}
    assert len(store.models) == 1 and len(store.versions) == 11
    assert len(store.artifacts("model-artifact")) == len(store.artifacts("doc-artifact")) == 11
    assert store.properties(store.models[0]) == {"champion": "1", "previous": "11"}


def test_what_is_stored_after_we_have_given_up_is_stored_once(office: Office, store: Store) -> None:
    office.seconds = 1.0
    office.restart()
    office.register("1")
    store.script.extend([None, None, None, 1.5])  # the version is made, half a second late
    with model_registry(store, office.port):
        (said,) = office.step()
        assert "does not answer within 1 s" in said
        time.sleep(1.0)
        assert len(store.versions) == 1
        office.step(LONGEST_PAUSE_SECONDS)
    assert office.states() == ["sent"]
    assert len(store.versions) == len(store.entities["artifacts"]) == 1


def test_a_kill_after_it_was_stored_stores_nothing_again(office: Office, store: Store) -> None:
    office.register("1")
    with model_registry(store, office.port):
        office.step()
        with office.database.transaction() as session:
            session.get_one(RegistryRecordRow, f"{ALIAS}/1").state = "pending"
        office.restart()
        office.step()
    assert office.states() == ["sent"]
    assert len(store.models) == len(store.versions) == len(store.entities["artifacts"]) == 1


def test_what_is_refused_waits_and_holds_nobody_up(office: Office, store: Store) -> None:
    office.register("1", "2")
    with model_registry(store, office.port):
        model = store.create("registered_models", {"name": ALIAS, "externalId": "theirs"}, None)
        theirs = {"name": "1", "registeredModelId": model["id"], "externalId": "their 1"}
        store.create("model_versions", theirs, None)
        said = office.step()
        assert any("409 model_versions with name 1 already exists" in one for one in said)
        assert office.states() == ["pending", "sent"]
        assert office.step(REFUSED_PAUSE_SECONDS / 2) == []
        store.versions.pop(0)
        office.step(REFUSED_PAUSE_SECONDS)
    assert office.states() == ["sent", "sent"]
    assert len(store.models) == 1, "a model of that name is used, whoever made it"


def test_what_others_say_of_a_model_stays(office: Office, store: Store) -> None:
    office.register("1", "2")
    office.move("promote", "1")
    theirs = {"metadataType": "MetadataStringValue", "string_value": "blue"}
    with model_registry(store, office.port):
        office.step()
        store.models[0]["customProperties"]["team"] = theirs
        office.move("promote", "2")
        office.step()
    told = store.properties(store.models[0])
    assert told == {"champion": "2", "previous": "1", "team": "blue"}


def test_a_token_that_is_wrong_is_said_and_never_told(database: Database, store: Store) -> None:
    office = Office(database, token="a-secret-of-ours")
    office.register("1")
    store.token = "another"
    with model_registry(store, office.port):
        (said,) = office.step()
        assert "401 Unauthorized" in said and "a-secret-of-ours" not in said
        assert office.states() == ["pending"]
        store.token = "a-secret-of-ours"
        office.step(REFUSED_PAUSE_SECONDS)
    assert office.states() == ["sent"]


def test_a_move_that_breaks_off_leaves_no_record(office: Office) -> None:
    office.register("1")
    refuse_writes(office.database, "audit")
    with pytest.raises(Exception, match="refused for the test"):
        office.move("promote", "1")
    assert [row.kind for row in office.rows()] == ["register"]


def test_a_record_that_cannot_be_written_keeps_the_champion(office: Office) -> None:
    """They are one transaction: no move goes unrecorded."""
    office.register("1")
    refuse_writes(office.database, "registry_record")
    with pytest.raises(Exception, match="refused for the test"):
        office.move("promote", "1")
    with office.database.session() as session:
        assert champion_of(session, ALIAS).version is None
