"""Promotion and rollback: whole or not at all, once, and without MLflow."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from evals.records import Decision
from gateway.audit import AuditFilter, entries
from gateway.database import Conflict, Database, now
from gateway.errors import BadRequest, NotFound
from pipelines.champion import Services
from pipelines.experiment import conclude, stop
from pipelines.findings import find
from pipelines.promotion import (
    AliasFollower,
    Moved,
    Promotion,
    Rollback,
    follow_up,
    promote,
    rollback,
)
from pipelines.registry import Registry, RegistryUnavailable
from pipelines.rollout import Replicas, RolloutFailed
from tests.gateway_process import free_port
from tests.pipelines.lifecycle import (
    ALIAS,
    FakeRegistry,
    adapter_name,
    begin,
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


async def promoted(services: Services, version: str, **changes: Any) -> Any:
    given: dict[str, Any] = {"actor": "anna", "reason": "it is better"} | changes
    return await promote(services, Promotion(alias=ALIAS, name=ALIAS, version=version, **given))


async def rolled_back(services: Services, **changes: Any) -> Any:
    given: dict[str, Any] = {"actor": "ben", "reason": "it answers nonsense"} | changes
    return await rollback(services, Rollback(alias=ALIAS, **given))


def only_entry(database: Database, action: str) -> Any:
    """The one row of the audit trail with this action."""
    with database.session() as session:
        (entry,) = entries(session, AuditFilter(action=action))
    return entry


async def test_promotion_moves_traffic_and_says_why(services, database):
    moved = await promoted(services, "1")
    after = state_of(database)
    assert moved.adapter == adapter_name("1") and not moved.repeated
    assert after.arms() == {"champion": adapter_name("1")}
    assert (after.champion.version, after.champion.can_go_back) == ("1", True)
    assert after.actions == ["champion.promote"]
    entry = only_entry(database, "champion.promote")
    assert entry.change.reason == "it is better" and entry.change.actor == "anna"
    assert entry.change.before == {"version": None, "adapter": None}
    assert entry.change.after == {"version": "1", "adapter": adapter_name("1")}
    assert entry.change.evidence["training_id"] and entry.change.evidence["dataset_id"]
    assert entry.change.evidence["verdict_id"] == after.promotions[0].verdict_id is not None


async def test_promotion_again_changes_nothing(services, database):
    first = await promoted(services, "1")
    again = await promoted(services, "1")
    assert again.repeated and again.promotion.promotion_id == first.promotion.promotion_id
    assert state_of(database).actions == ["champion.promote"]


async def test_promotion_is_refused_where_something_is_missing(services, database, engine):
    seed_version(database, "3", decision=None)
    seed_version(database, "4", decision=Decision.HOLD)
    with pytest.raises(NotFound, match="has no version '9'"):
        await promoted(services, "9")
    with pytest.raises(Conflict, match="say why it goes unjudged"):
        await promoted(services, "3")
    with pytest.raises(Conflict, match="the verdict on it is hold"):
        await promoted(services, "4")
    with pytest.raises(BadRequest, match="say why"):
        await promoted(services, "1", reason=" ")
    engine.refusal = (400, "Loading lora x failed: No adapter found for y")
    with pytest.raises(RolloutFailed):
        await promoted(services, "1")
    assert state_of(database).actions == []
    engine.refusal = None
    await promoted(services, "3", unjudged="a drill")
    entry = only_entry(database, "champion.promote")
    assert entry.change.evidence["unjudged"] == "a drill"


async def test_promotion_waits_for_an_experiment_to_end(services, database):
    experiment = await begin(services, "1")
    with pytest.raises(Conflict, match=f"experiment {experiment.experiment_id} is under way"):
        await promoted(services, "2")
    stop(database, experiment.experiment_id, "enough", "anna")
    await promoted(services, "2")


async def test_rollback_goes_down_the_stack(services, database):
    await promoted(services, "1")
    await promoted(services, "2")
    assert (await rolled_back(services)).adapter == adapter_name("1")
    assert state_of(database).arms() == {"champion": adapter_name("1")}
    assert (await rolled_back(services)).adapter is None
    after = state_of(database)
    assert after.arms() == {"champion": None}
    assert [one.to_version for one in after.promotions] == ["1", "2", "1", None]
    with pytest.raises(Conflict, match="nothing to go back to"):
        await rolled_back(services)
    await promoted(services, "2")
    assert (await rolled_back(services)).adapter is None


async def test_rollback_again_goes_back_once(services, database):
    await promoted(services, "1")
    await promoted(services, "2")
    first = await rolled_back(services, from_version="2")
    again = await rolled_back(services, from_version="2")
    assert again.repeated and again.promotion.promotion_id == first.promotion.promotion_id
    assert again.adapter == adapter_name("1")
    assert state_of(database).champion.version == "1"
    with pytest.raises(Conflict, match="its champion is version 1, not 7"):
        await rolled_back(services, from_version="7")


async def test_rollback_wants_a_reason(services):
    await promoted(services, "1")
    with pytest.raises(BadRequest, match="reason"):
        await rolled_back(services, reason="")


async def test_rollback_ends_an_experiment(services, database):
    await promoted(services, "1")
    experiment = await begin(services, "2")
    moved = await rolled_back(services)
    after = state_of(database)
    assert moved.stopped == experiment.experiment_id and moved.adapter is None
    assert after.experiments[0].state == "stopped"
    assert after.arms() == {"champion": None} and after.split.experiment_id is None
    assert after.actions[-2:] == ["experiment.stopped", "champion.rollback"]
    late = find(experiment, observed(BAD, GOOD), now())
    assert (await conclude(services, experiment.experiment_id, late)).state == "stopped"
    assert state_of(database).arms() == {"champion": None}


async def test_rollback_with_nothing_below_still_ends_the_experiment(services, database):
    experiment = await begin(services, "1")
    moved = await rolled_back(services)
    assert (moved.promotion, moved.stopped) == (None, experiment.experiment_id)
    assert state_of(database).arms() == {"champion": None}


async def test_rollback_to_what_an_engine_lost(services, database, engine):
    """It is loaded first; where that fails the base model answers only if the caller says so."""
    await promoted(services, "1")
    await promoted(services, "2")
    await engine.restart()
    engine.refusal = (400, "Loading lora x failed: No adapter found for y")
    with pytest.raises(RolloutFailed):
        await rolled_back(services)
    assert state_of(database).champion.version == "2"
    moved = await rolled_back(services, accept_base=True)
    assert moved.adapter is None and "cannot be loaded" in moved.note
    after = state_of(database)
    assert after.arms() == {"champion": None} and not after.champion.can_go_back


async def test_rollback_is_quick_with_mlflow_and_an_engine_away(services, database, engine):
    await promoted(services, "1")
    await engine.go_away()
    began = time.monotonic()
    moved = await rolled_back(services)
    assert time.monotonic() - began < 5
    assert moved.promotion.state == "moving"
    away = AliasFollower(database, Registry(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(RegistryUnavailable):
        away.follow(ALIAS)
    assert [one.state for one in state_of(database).promotions] == ["moving", "moving"]


async def test_rollback_is_quick_with_an_engine_that_hangs(services, database, engine):
    await promoted(services, "1")
    await promoted(services, "2")
    engine.silent = True
    began = time.monotonic()
    moved = await rolled_back(services, accept_base=True)
    assert time.monotonic() - began < 5
    assert moved.adapter is None


@pytest.mark.parametrize("table", ["promotion", "split", "audit", "experiment"])
async def test_a_rollback_that_breaks_off_leaves_nothing_behind(services, database, table):
    await promoted(services, "1")
    await begin(services, "2")
    before = state_of(database)
    refuse_writes(database, table)
    with pytest.raises(Exception, match="refused for the test"):
        await rolled_back(services)
    after = state_of(database)
    assert (after.arms(), after.actions) == (before.arms(), before.actions)
    assert after.experiments[0].state == "running"


async def test_of_two_at_once_one_wins_and_the_other_is_told(services, database, engine):
    await promoted(services, "1")
    await promoted(services, "2")
    engine.adapters.clear()
    engine.load_seconds = 0.3  # both have read the champion before either moves it
    outcomes: list[Any] = []

    def work() -> None:
        try:
            outcomes.append(asyncio.run(rolled_back(services)))
        except Conflict as refused:
            outcomes.append(refused)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    (won,) = [one for one in outcomes if isinstance(one, Moved)]
    (told,) = [one for one in outcomes if isinstance(one, Conflict)]
    assert won.adapter == adapter_name("1")
    assert "ben was faster: rollback to version 1" in str(told)
    assert state_of(database).champion.version == "1"
    assert [one.kind for one in state_of(database).promotions] == ["promote", "promote", "rollback"]


async def test_mlflows_aliases_follow(services, database):
    registry = FakeRegistry()
    await promoted(services, "1")
    assert follow_up(database, registry) == [
        "extractor: MLflow's aliases are champion 1, previous -, challenger -"
    ]
    await begin(services, "2")
    follow_up(database, registry)
    assert registry.of() == {"champion": "1", "challenger": "2"}
    await rolled_back(services)
    follow_up(database, registry)
    assert registry.of() == {}
    await promoted(services, "1")
    await promoted(services, "2")
    follow_up(database, registry)
    assert registry.of() == {"champion": "2", "previous": "1"}
    assert {one.state for one in state_of(database).promotions} == {"done"}


async def test_a_promotion_moves_until_mlflow_is_back(services, database):
    registry = FakeRegistry(failure=RegistryUnavailable("MLflow is away"))
    follower = AliasFollower(database, registry)
    await promoted(services, "1")
    await promoted(services, "2")
    for _ in range(2):
        assert follower.names() == [ALIAS]
        with pytest.raises(RegistryUnavailable):
            follower.follow(ALIAS)
    assert {one.state for one in state_of(database).promotions} == {"moving"}
    registry.failure = None
    follower.follow(ALIAS)
    assert registry.of() == {"champion": "2", "previous": "1"}
    assert {one.state for one in state_of(database).promotions} == {"done"}
    calls = registry.calls
    assert follower.names() == [] and registry.calls == calls


async def test_the_newest_word_is_told_last(services, database):
    """The champion is moved while MLflow is being told of the one before."""
    await promoted(services, "1")

    class Slow(FakeRegistry):
        def set_alias(self, name: str, alias: str, version: str | None) -> None:
            if self.calls == 0:
                thread = threading.Thread(target=lambda: asyncio.run(promoted(services, "2")))
                thread.start()
                thread.join()
            super().set_alias(name, alias, version)

    registry = Slow()
    follower = AliasFollower(database, registry)
    await asyncio.to_thread(follower.follow, ALIAS)
    assert registry.of() == {"champion": "2", "previous": "1"}
    assert follower.names() == []
