"""`approval: manual`: the champion moves when a person says so, once, and for what was asked."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from gateway.audit import AuditFilter, entries
from gateway.database import Conflict, Database, now
from gateway.errors import BadRequest, NotFound
from pipelines.approval import GOOD_FOR, MANUAL, Request, ask, find_approval, listed
from pipelines.approval_orders import Order, grant, refuse, void_overtaken
from pipelines.champion import Services, hold
from pipelines.experiment import conclude
from pipelines.findings import find
from pipelines.promotion import Moved, Promotion, Rollback, promote, rollback
from pipelines.rollout import Replicas, RolloutFailed
from pipelines.tables import ApprovalRow, ModelVersionRow, TrainingRow
from tests.pipelines.lifecycle import (
    ALIAS,
    adapter_name,
    begin,
    plan,
    refuse_writes,
    seed_version,
    state_of,
)
from tests.pipelines.observed_users import BAD, GOOD, observed
from tests.pipelines.scripted_engine import ScriptedEngine

pytest_plugins = ("tests.state_databases",)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


@pytest.fixture
def services(database: Database, engine: ScriptedEngine) -> Services:
    for version in ("1", "2"):
        seed_version(database, version)
    return Services(database, Replicas([engine.url]))


def make_tabular(database: Database) -> None:
    """Versions that stand on no base model."""
    with database.transaction() as session:
        for training in session.query(TrainingRow):
            training.base_model = training.base_digest = ""


async def won(services: Services, version: str, **changes: Any) -> str:
    """An experiment that the candidate wins; its id."""
    running = await begin(services, version, approval=MANUAL, plan=plan(**changes))
    ended = await conclude(
        services, running.experiment_id, find(running, observed(BAD, GOOD), now())
    )
    assert ended.state == "won"
    return running.experiment_id


def requests(database: Database, state: str | None = "open") -> list[ApprovalRow]:
    with database.session() as session:
        return list(listed(session, state, 100))


def order(row: ApprovalRow, reason: str = "looks right") -> Order:
    return Order(row.approval_id, "cli:ben", reason)


async def test_who_wins_asks_and_nothing_moves(services, database):
    experiment_id = await won(services, "1")
    after = state_of(database)
    assert after.promotions == [] and after.champion.version is None
    assert after.arms() == {"champion": None} and after.split.experiment_id is None
    (row,) = requests(database)
    assert (row.alias, row.name, row.version) == (ALIAS, ALIAS, "1")
    assert row.experiment_id == experiment_id and row.asked_by == "controller"
    assert "the candidate is better" in row.asked_for
    assert row.verdict_id == after.experiments[0].verdict_id is not None
    assert after.actions == ["experiment.start", "experiment.won", "approval.ask"]


@pytest.mark.parametrize("kind", ["llm", "tabular"])
async def test_granted_it_becomes_champion_by_the_same_way(services, database, engine, kind):
    if kind == "tabular":
        make_tabular(database)
    experiment_id = await won(services, "1")
    (row,) = requests(database)
    engine.adapters.clear()  # meanwhile unloaded
    moved = await grant(services, order(row))
    after = state_of(database)
    assert moved.adapter == adapter_name("1") and set(engine.adapters) == {adapter_name("1")}
    assert after.arms() == {"champion": adapter_name("1")}
    (promotion,) = after.promotions
    assert (promotion.experiment_id, promotion.verdict_id) == (experiment_id, row.verdict_id)
    assert (promotion.actor, promotion.reason) == ("cli:ben", "looks right")
    (row,) = requests(database, "granted")
    assert row.promotion_id == promotion.promotion_id and row.decided_by == "cli:ben"
    with database.session() as session:
        (entry,) = entries(session, AuditFilter(action="champion.promote"))
        (granted,) = entries(session, AuditFilter(action="approval.granted"))
    evidence = entry.change.evidence or {}
    assert evidence["approval_id"] == row.approval_id and evidence["asked_by"] == "controller"
    assert granted.change.actor == "cli:ben" and granted.change.reason == "looks right"
    again = await grant(services, order(row, "again"))
    assert again.repeated and again.promotion is not None
    assert again.promotion.promotion_id == promotion.promotion_id
    assert len(state_of(database).promotions) == 1


async def test_refused_the_champion_stays(services, database):
    await won(services, "1")
    (row,) = requests(database)
    refuse(database, order(row, "not before the holidays"))
    refuse(database, order(row, "again"))
    assert state_of(database).champion.version is None
    (row,) = requests(database, "refused")
    assert (row.decided_by, row.reason) == ("cli:ben", "not before the holidays")
    with pytest.raises(Conflict, match="refused already, by cli:ben: not before the holidays"):
        await grant(services, order(row))
    assert state_of(database).actions[-1] == "approval.refused"


@pytest.mark.parametrize("decide", ["grant", "refuse"])
async def test_it_wants_a_reason_and_a_request(services, database, decide):
    await won(services, "1")
    (row,) = requests(database)

    async def decided(given: Order) -> None:
        if decide == "grant":
            await grant(services, given)
        else:
            refuse(database, given)

    with pytest.raises(BadRequest, match="reason"):
        await decided(order(row, " "))
    with pytest.raises(NotFound, match="no approval 'nobody'"):
        await decided(Order("nobody", "cli:ben", "why not"))


async def test_overtaken_it_is_void_and_says_so(services, database, engine):
    await won(services, "1")
    (row,) = requests(database)
    await promote(services, Promotion(ALIAS, ALIAS, "2", "anna", "urgent"))
    with pytest.raises(
        Conflict, match=r"void: .*moved since: promote to version 2 by anna \(urgent"
    ):
        await grant(services, order(row))
    assert adapter_name("1") not in engine.calls[-1][1].values()
    assert state_of(database).champion.version == "2"
    (row,) = requests(database, "void")
    assert "moved since" in str(row.reason) and state_of(database).actions[-1] == "approval.void"


async def test_moved_there_and_back_it_is_void_too(services, database):
    """What was compared is not what the users have had since."""
    await won(services, "1")
    await promote(services, Promotion(ALIAS, ALIAS, "2", "anna", "urgent"))
    await rollback(services, Rollback(ALIAS, "anna", "no"))
    (row,) = requests(database)
    with pytest.raises(Conflict, match="void"):
        await grant(services, order(row))


async def test_the_controller_ends_what_was_overtaken_or_is_old(services, database):
    await won(services, "1")
    assert void_overtaken(database) == []
    (row,) = requests(database)
    with database.transaction() as session:
        find_approval(session, row.approval_id).created_at = now() - GOOD_FOR - timedelta(hours=1)
    (said,) = void_overtaken(database)
    assert f"approval {row.approval_id} on {ALIAS} is void: it is older than 30 days" in said
    assert requests(database) == [] and void_overtaken(database) == []


async def test_the_newer_request_takes_the_place_of_the_older(services, database):
    await won(services, "1")
    (older,) = requests(database)
    await won(services, "2")
    (newer,) = requests(database)
    assert newer.version == "2"
    with pytest.raises(
        Conflict, match=f"void already, by controller: {newer.approval_id} is newer"
    ):
        await grant(services, order(older))
    await grant(services, order(newer))
    assert state_of(database).champion.version == "2"


async def test_nothing_is_granted_while_an_experiment_is_under_way(services, database):
    await won(services, "1")
    (row,) = requests(database)
    running = await begin(services, "2")
    with pytest.raises(Conflict, match=f"experiment {running.experiment_id} is under way"):
        await grant(services, order(row))
    assert len(requests(database)) == 1


async def test_what_cannot_be_served_is_not_granted(services, database, engine):
    await won(services, "1")
    (row,) = requests(database)
    await engine.restart()
    engine.refusal = (400, "Loading lora x failed: No adapter found for y")
    with pytest.raises(RolloutFailed):
        await grant(services, order(row))
    assert len(requests(database)) == 1 and state_of(database).champion.version is None


@pytest.mark.parametrize("table", ["promotion", "split", "audit", "approval", "registry_record"])
async def test_a_grant_that_breaks_off_leaves_nothing_behind(services, database, table):
    await won(services, "1")
    (row,) = requests(database)
    before = state_of(database)
    refuse_writes(database, table)
    with pytest.raises(Exception, match="refused for the test"):
        await grant(services, order(row))
    after = state_of(database)
    assert (after.arms(), after.actions) == (before.arms(), before.actions)
    assert len(requests(database)) == 1


async def test_of_a_grant_and_a_refusal_at_once_one_counts(services, database, engine):
    await won(services, "1")
    (row,) = requests(database)
    engine.adapters.clear()
    engine.load_seconds = 0.3
    outcomes: list[Any] = []

    def work() -> None:
        try:
            outcomes.append(asyncio.run(grant(services, order(row))))
        except Conflict as refused:
            outcomes.append(refused)

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.sleep(0.1)
    refuse(database, order(row, "no"))
    await asyncio.to_thread(thread.join)
    (told,) = outcomes
    assert not isinstance(told, Moved) and "refused already" in str(told)
    assert state_of(database).champion.version is None


async def test_a_watch_begins_with_the_grant(services, database):
    experiment_id = await won(services, "1", holdback=0.25)
    salt = state_of(database).split.salt
    (row,) = requests(database)
    await grant(services, order(row))
    after = state_of(database)
    assert after.arms() == {"champion": None, "challenger": adapter_name("1")}
    assert [arm.weight for arm in after.split.arms] == [0.25, 0.75]
    assert after.split.salt == salt, "who had the candidate has it still"
    watch = after.experiments[-1]
    assert watch.plan["watches"] == experiment_id and watch.approval == "automatic"
    seen = observed(GOOD, BAD, assigned={"champion": 30, "challenger": 90})
    bad = find(watch, seen, now())
    assert (await conclude(services, watch.experiment_id, bad)).state == "rolled_back"
    assert state_of(database).champion.version is None, "back without asking anybody"


async def test_a_first_version_asks_without_an_experiment(services, database):
    """As the gate asks for it where nothing answers yet."""
    make_tabular(database)
    with database.session() as session:
        verdict_id = session.get_one(ModelVersionRow, (ALIAS, "1")).verdict_id
    request = Request(ALIAS, ALIAS, "1", "train", "the gate let it through", None, verdict_id)
    for _ in range(2):
        with database.transaction() as session:
            hold(session)
            ask(session, request)
    (row,) = requests(database)
    await grant(services, order(row))
    (promotion,) = state_of(database).promotions
    assert (promotion.experiment_id, promotion.verdict_id) == (None, verdict_id)
