"""Labels of prompts: which moves there are, each whole and with its audit row; MLflow follows."""

import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import uuid_utils
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.migrations import upgrade
from evals.records import Decision, Verdict
from evals.verdicts import add_verdict
from gateway.audit import AuditEntry, AuditFilter, entries
from gateway.database import Conflict, Database, current_version, now, open_database
from gateway.errors import BadRequest, NotFound
from gateway.prompt_versions import (
    PRODUCTION,
    PromptVersionRow,
    find_version,
    label_of,
    labels_of,
    put_version,
)
from pipelines import prompt_labels
from pipelines.champion import RUNNING, hold
from pipelines.prompt_acceptance import accept
from pipelines.prompt_labels import (
    FIRST,
    LABEL,
    PROMOTE,
    LabelFollower,
    LabelMove,
    move_label,
    production_of,
    require_version,
    subject_of,
)
from pipelines.prompt_promotion import (
    Labelled,
    LabelOrder,
    PromptRollback,
    label,
    rollback,
)
from pipelines.prompt_registry import PromptRegistry
from pipelines.prompt_sync import Synced
from pipelines.registry import RegistryUnavailable
from pipelines.tables import ExperimentRow
from prompts.prompt import Prompt
from tests.gateway_process import free_port
from tests.pipelines.mlflow_server import MLflowServer

pytest_plugins = ("tests.state_databases",)
NAME = "greeter"


def prompt(version: str, name: str = NAME) -> Prompt:
    return Prompt.model_validate({"name": name, "template": f"text {version}", "model": "m"})


def put(database: Database, *versions: str, name: str = NAME) -> None:
    """Versions of a prompt, whose texts have their numbers."""
    with database.transaction() as session:
        for version in versions:
            given = prompt(version, name)
            row = PromptVersionRow(
                name=name, version=version, content_hash=given.content_hash, content=given.content,
                git_sha="a" * 40, path=f"{name}.yaml", created_at=now(),
            )  # fmt: skip
            put_version(session, row)


def move(database: Database, kind: str, version: str, **changes: Any) -> None:
    with database.transaction() as session:
        hold(session)
        given = {"actor": "ci", "reason": "said so", "name": NAME} | changes
        move_label(session, LabelMove(kind=kind, version=version, **given))


def judged(database: Database, version: str, baseline: str | None, decision: Decision) -> str:
    """A verdict on a version; `baseline` is another's number."""
    verdict = Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=subject_of(prompt(version)),
        baseline="none" if baseline is None else subject_of(prompt(baseline)),
        decision=decision,
        metrics=(),
        reasons=("so it was measured",),
        evidence={},
        created_at=now(),
    )
    with database.transaction() as session:
        add_verdict(session, verdict)
    return verdict.verdict_id


def production(database: Database, name: str = NAME) -> str | None:
    with database.session() as session:
        return label_of(session, name, PRODUCTION)


def audited(database: Database) -> list[AuditEntry]:
    """Rows of the trail, oldest first."""
    with database.session() as session:
        return entries(session, AuditFilter(limit=1000))[::-1]


def order(version: str, name: str = PRODUCTION, **changes: Any) -> LabelOrder:
    given = {"name": NAME, "actor": "anna", "reason": "it is better"} | changes
    return LabelOrder(version=version, label=name, **given)


def back(database: Database, **changes: Any) -> Labelled:
    given = {"name": NAME, "actor": "ben", "reason": "it is rude"} | changes
    return rollback(database, PromptRollback(**given))


def test_production_moves_by_a_verdict_and_back(database):
    put(database, "1", "2")
    move(database, FIRST, "1")
    verdict_id = judged(database, "2", "1", Decision.PROMOTE)
    with database.session() as session:
        before = current_version(session)
    assert label(database, order("2")) == Labelled(NAME, PRODUCTION, "2", "1")
    assert production(database) == "2"
    with database.session() as session:
        assert current_version(session) > before  # the gateway's workers look at that
    assert back(database) == Labelled(NAME, PRODUCTION, "1", "2")
    assert production(database) == "1"
    first, promoted, rolled = audited(database)
    assert [one.change.action for one in (first, promoted, rolled)] == [
        "prompt.first", "prompt.promote", "prompt.rollback",
    ]  # fmt: skip
    assert promoted.change.before == {"label": PRODUCTION, "version": "1"}
    assert promoted.change.after == {"label": PRODUCTION, "version": "2"}
    assert (promoted.change.actor, promoted.change.reason) == ("anna", "it is better")
    assert promoted.change.evidence == {
        "verdict_id": verdict_id, "experiment_id": None, "git_sha": "a" * 40,
        "content_hash": prompt("2").content_hash,
    }  # fmt: skip
    assert (rolled.change.actor, rolled.change.reason) == ("ben", "it is rude")
    assert {one.change.subject for one in (first, promoted, rolled)} == {f"prompt:{NAME}"}


def test_without_a_passing_verdict_against_production_it_stays(database):
    put(database, "1", "2", "3")
    move(database, FIRST, "1")
    with pytest.raises(Conflict, match="no verdict on it"):
        label(database, order("2"))
    judged(database, "2", "1", Decision.PROMOTE)
    judged(database, "2", "1", Decision.REJECT)
    with pytest.raises(Conflict, match="the verdict on it is reject: so it was measured"):
        label(database, order("2"))
    judged(database, "3", "2", Decision.PROMOTE)
    with pytest.raises(Conflict, match=r"compares it with prompt:greeter@.*evaluate it again"):
        label(database, order("3"))
    assert production(database) == "1"
    assert [one.change.action for one in audited(database)] == ["prompt.first"]


def test_what_was_rolled_back_waits_for_a_new_verdict_and_a_person(database):
    put(database, "1", "2")
    move(database, FIRST, "1")
    judged(database, "2", "1", Decision.PROMOTE)
    synced = [Synced(NAME, "2", prompt("2").content_hash, None, made=True, labelled=False)]
    assert accept(database, synced, "ci") == ([Labelled(NAME, PRODUCTION, "2", "1")], [])
    assert accept(database, synced, "ci") == ([], [])
    back(database)
    with pytest.raises(Conflict, match=r"older than the rollback of .* \(it is rude\); evaluate"):
        label(database, order("2"))
    judged(database, "2", "1", Decision.PROMOTE)
    moved, (why,) = accept(database, synced, "ci")
    assert moved == []
    assert "production was rolled back from it (it is rude)" in why
    assert production(database) == "1"
    label(database, order("2"))
    assert production(database) == "2"


def test_a_prompt_that_was_never_in_production_needs_a_verdict_too(database):
    put(database, "1")
    with pytest.raises(Conflict, match="no verdict"):
        label(database, order("1"))
    judged(database, "1", None, Decision.PROMOTE)
    label(database, order("1"))
    assert production(database) == "1"


def test_other_labels_are_free_and_each_has_its_row(database):
    put(database, "1", "2")
    assert label(database, order("1", "candidate")).before is None
    assert label(database, order("2", "candidate")).before == "1"
    assert label(database, order("2", "candidate")).repeated
    label(database, order("candidate", "eu-west"))  # a label may be named by another
    with database.session() as session:
        assert labels_of(session, NAME) == {"candidate": "2", "eu-west": "2"}
    changes = [one.change for one in audited(database)]
    assert [one.action for one in changes] == ["prompt.label"] * 3
    assert changes[1].before == {"label": "candidate", "version": "1"}
    with database.session() as session:
        assert production_of(session, NAME).last is None


def test_what_cannot_be_a_label(database):
    put(database, "1")
    wrong = ["latest", "v1", "V2", "", "-x", "Production", "a b", "a_b", "a" * 65, "1a", "a@b"]
    for name in wrong:
        with pytest.raises(BadRequest, match="label"):
            label(database, order("1", name))
        with pytest.raises(BadRequest, match="label"):
            move(database, LABEL, "1", label=name)
    assert audited(database) == []


def test_a_decided_move_is_of_its_label(database):
    put(database, "1")
    with pytest.raises(ValueError, match="does not move"):
        move(database, LABEL, "1")
    with pytest.raises(ValueError, match="does not move"):
        move(database, PROMOTE, "1", label="candidate")
    assert audited(database) == []


def test_what_is_not_there_and_what_is_not_said(database):
    with pytest.raises(NotFound, match="there is no prompt 'greeter'"):
        label(database, order("1"))
    with pytest.raises(NotFound, match="there is no prompt 'greeter'"):
        back(database)
    put(database, "1", "2")
    with pytest.raises(NotFound, match=r"no version or label '9' \(versions: 1, 2\)"):
        label(database, order("9", "candidate"))
    with pytest.raises(Conflict, match="has no production version"):
        back(database)
    move(database, FIRST, "1")
    with pytest.raises(Conflict, match=r"first version, 1: there is nothing to go back to"):
        back(database)
    for reason in ("", "  "):
        with pytest.raises(BadRequest, match="reason"):
            label(database, order("2", "candidate", reason=reason))
        with pytest.raises(BadRequest, match="reason"):
            back(database, reason=reason)
    with database.session() as session:
        assert require_version(session, NAME, "production").version == "1"


def test_a_rollback_of_what_was_seen_is_done_once(database):
    put(database, "1", "2", "3")
    for version in "123":
        move(database, PROMOTE, version)
    assert back(database, from_version="3").version == "2"
    assert back(database, from_version="3").repeated
    with pytest.raises(Conflict, match="production is version 2, not 1"):
        back(database, from_version="1")
    assert production(database) == "2"
    assert back(database).version == "1"


def test_two_at_once_go_back_once(database):
    put(database, "1", "2", "3")
    for version in "123":
        move(database, PROMOTE, version)
    done: list[Labelled] = []
    ready = threading.Barrier(4)

    def run() -> None:
        ready.wait()
        done.append(back(database, from_version="3"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.repeated for one in done) == [False, True, True, True]
    assert production(database) == "2"


def test_an_experiment_under_way_holds_a_promotion_up(database):
    put(database, "1", "2")
    move(database, FIRST, "1")
    judged(database, "2", "1", Decision.PROMOTE)
    with database.transaction() as session:
        session.add(
            ExperimentRow(
                experiment_id="e-1", alias=f"prompt:{NAME}", name=NAME, version="2", state=RUNNING,
                arms=[], plan={}, started_at=now(),
            )
        )  # fmt: skip
    with pytest.raises(Conflict, match="experiment e-1 is under way"):
        label(database, order("2"))


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database for many examples, each with a prompt of its own."""
    url = f"sqlite:///{tmp_path_factory.mktemp('moves') / 'state.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", "back"]), max_size=10))
@example(["1", "2", "1", "back", "3", "back", "back", "back"])
def test_a_rollback_goes_where_production_was_before(lasting, moves):
    name = f"p-{uuid.uuid4().hex}"
    put(lasting, "1", "2", "3", name=name)
    stack: list[str] = []
    for one in moves:
        if one != "back":
            if stack[-1:] != [one]:
                move(lasting, PROMOTE, one, name=name)
                stack.append(one)
        elif len(stack) > 1:
            stack.pop()
            assert back(lasting, name=name).version == stack[-1]
        else:
            with pytest.raises(Conflict):
                back(lasting, name=name)
    with lasting.session() as session:
        found = production_of(session, name)
    assert found.version == (stack[-1] if stack else None)
    assert found.previous == (stack[-2] if len(stack) > 1 else None)


@dataclass
class Recorded:
    """Aliases in memory; `away` while MLflow is."""

    found: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    away: bool = False

    def aliases(self, name: str) -> Mapping[str, str]:
        if self.away:
            raise RegistryUnavailable("the model registry is away")
        return self.found.get(name, {})

    def set_alias(self, name: str, label: str, version: str) -> None:
        self.calls.append((name, label, version))
        self.found.setdefault(name, {})[label] = version


def test_aliases_follow_and_only_what_differs_is_told(database, monkeypatch):
    put(database, "1", "2")
    put(database, "1", name="other")
    registry = Recorded()
    follower = LabelFollower(database, registry)
    assert follower.names() == []
    move(database, FIRST, "1")
    move(database, LABEL, "1", name="other", label="candidate")
    assert follower.names() == [NAME, "other"]
    assert follower.follow(NAME) == "prompt greeter: MLflow's aliases: production 1"
    assert follower.names() == ["other"]
    follower.follow("other")
    assert follower.names() == []
    move(database, PROMOTE, "2")
    assert follower.names() == [NAME]
    follower.follow(NAME)
    assert registry.found == {NAME: {"production": "2"}, "other": {"candidate": "1"}}
    assert len(registry.calls) == 3
    registry.found[NAME]["production"] = "1"  # by hand, in MLflow
    assert follower.names() == []
    monkeypatch.setattr(prompt_labels, "LOOK_AGAIN_SECONDS", 0.0)
    assert follower.names() == [NAME, "other"]
    assert follower.follow("other") is None
    assert follower.follow(NAME) == "prompt greeter: MLflow's aliases: production 2"


def test_a_move_while_mlflow_is_away_is_told_later_and_the_newest_is_the_last(database):
    put(database, "1", "2", "3")
    move(database, FIRST, "1")
    registry = Recorded(away=True)
    follower = LabelFollower(database, registry)
    with pytest.raises(RegistryUnavailable):
        follower.follow(NAME)
    move(database, PROMOTE, "2")
    assert follower.names() == [NAME]
    registry.away = False

    def moved_meanwhile(name: str, label: str, version: str) -> None:
        Recorded.set_alias(registry, name, label, version)
        if version == "2":
            move(database, PROMOTE, "3")

    registry.set_alias = moved_meanwhile  # type: ignore[method-assign]
    follower.follow(NAME)
    assert registry.calls == [(NAME, "production", "2"), (NAME, "production", "3")]
    assert follower.names() == []


def test_a_real_mlflow_follows(database, mlflow_server: MLflowServer):
    name = f"labels-real-{database.engine.dialect.name}"
    put(database, "1", "2", name=name)
    real = PromptRegistry(mlflow_server.url, seconds=10)
    for version in ("1", "2"):
        real.put(prompt(version, name), {})
    move(database, FIRST, "1", name=name)
    away = LabelFollower(database, PromptRegistry(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(RegistryUnavailable):
        away.follow(name)
    follower = LabelFollower(database, real)
    follower.follow(name)
    assert real.aliases(name) == {"production": "1"}
    move(database, PROMOTE, "2", name=name)
    move(database, LABEL, "1", name=name, label="candidate")
    follower.follow(name)
    assert real.aliases(name) == {"production": "2", "candidate": "1"}


def test_the_rows_prompt_is_the_subject_of_its_verdicts(database):
    put(database, "1")
    with database.session() as session:
        row = find_version(session, NAME, "1")
        assert row is not None
        assert subject_of(row.prompt) == f"prompt:{NAME}@{row.content_hash[:12]}"
