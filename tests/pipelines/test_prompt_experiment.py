"""Experiments of prompt versions: real workers, a real controller, users who give feedback."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from evals.verdicts import find_verdict
from gateway.database import Database, now, open_database
from pipelines.prompt_labels import subject_of
from pipelines.prompt_promotion import PromptRollback, rollback
from pipelines.tables import ExperimentRow
from tests.gateway_process import GatewayProcess, configuration
from tests.pipelines.prompt_trial import (
    IN_FORCE_SECONDS,
    REFUSAL,
    ControllerProcess,
    Crowd,
    begin,
    first,
    plan,
    prompt,
    put,
    row_of,
    state_of,
    until,
)
from tests.scripted_upstream import ScriptedUpstreamProcess

USERS = 70


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with ScriptedUpstreamProcess() as upstream:
        home = tmp_path_factory.mktemp("prompts") / "home"
        process = GatewayProcess(home, configuration(upstream.url)).start()
        yield process
        process.stop()


@pytest.fixture(scope="module")
def controller(gateway: GatewayProcess) -> Iterator[ControllerProcess]:
    with ControllerProcess(gateway) as process:
        yield process


@pytest.fixture
def database(gateway: GatewayProcess) -> Iterator[Database]:
    opened = open_database(gateway.settings.database_url)
    yield opened
    opened.close()


def session_of(gateway: GatewayProcess) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(gateway.url, headers={"authorization": f"Bearer {gateway.key}"})


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with session_of(gateway) as session:
        yield session


def library(database: Database, name: str, **second: Any) -> None:
    """Version 1, in production, and version 2, which `second` makes what it is."""
    put(database, "1", prompt(name, "Greet {{ who }}."))
    said = second.pop("said", "Greet {{ who }} kindly.")
    put(database, "2", prompt(name, said, **second))
    first(database, name)


async def ended(database: Database, row: ExperimentRow) -> ExperimentRow:
    await until(
        lambda: row_of(database, row.experiment_id).state != "running", "the experiment ends"
    )
    return row_of(database, row.experiment_id)


async def test_the_better_version_wins_and_production_moves(gateway, controller, client, database):
    library(database, "better")
    crowd = Crowd(client, "better", {})
    await crowd.served("1")
    row = await begin(database, "better", "2")
    split = state_of(database, "better").split
    assert split is not None
    await asyncio.sleep(1)
    for _ in range(3):
        await crowd.come(0, 12)
    for number in range(12):
        user = f"better-{number}"
        assert crowd.seen[user] == {split.choose("default", user).prompt_version}
    assert {version for versions in crowd.seen.values() for version in versions} == {"1", "2"}
    crowd.taste = {"1": 0.2, "2": 0.9}
    await crowd.come(12, USERS)
    won = await ended(database, row)
    assert await crowd.served("2") <= IN_FORCE_SECONDS
    assert (won.state, won.version) == ("promoted", "2")
    after = state_of(database, "better")
    assert (after.production, after.split) == ("2", None)
    assert after.actions == [
        "prompt.first", "experiment.start", "experiment.promoted", "prompt.promote",
    ]  # fmt: skip
    with database.session() as session:
        verdict: Any = find_verdict(session, str(won.verdict_id))
    assert verdict.subject == subject_of(prompt("better", "Greet {{ who }} kindly."))
    assert verdict.baseline == subject_of(prompt("better", "Greet {{ who }}."))
    assert verdict.evidence["experiment_id"] == row.experiment_id


async def test_the_worse_version_loses(gateway, controller, client, database):
    library(database, "worse")
    crowd = Crowd(client, "worse", {"1": 0.9, "2": 0.2})
    await crowd.served("1")
    row = await begin(database, "worse", "2")
    await asyncio.sleep(1)
    await crowd.come(0, USERS)
    lost = await ended(database, row)
    assert lost.state == "rolled_back"
    tried = {user for user, versions in crowd.seen.items() if "2" in versions}
    assert await crowd.served("1", sorted(tried)[0]) <= IN_FORCE_SECONDS
    after = state_of(database, "worse")
    assert (after.production, after.split) == ("1", None)
    assert after.actions == ["prompt.first", "experiment.start", "experiment.rolled_back"]


async def test_production_against_itself_is_not_promoted(gateway, controller, client, database):
    library(database, "same")
    crowd = Crowd(client, "same", {"1": 0.5})
    await crowd.served("1")
    row = await begin(database, "same", None, plan=plan(maximum_users=60))
    await asyncio.sleep(1)
    await crowd.come(0, USERS)
    done = await ended(database, row)
    assert (done.state, done.version) == ("held", None)
    assert "no decision with" in str(done.message)
    assert state_of(database, "same").production == "1"


@pytest.mark.parametrize(
    ("metric", "second"),
    [
        ({"metric": "errors", "margin": 0.02}, {"model": "status=500"}),
        ({"metric": "refusals", "margin": 0.1}, {"model": "echo", "said": REFUSAL}),
        ({"metric": "latency", "limit": 0.1, "margin": 0.02}, {"model": "chat,slow-ms=150"}),
        ({"metric": "cost", "limit": 0.001, "margin": 0.0001}, {"model": "chat,tokens=300"}),
    ],
    ids=["errors", "refusals", "latency", "cost"],
)
async def test_a_guardrail_takes_all_traffic_back_at_once(
    gateway, controller, client, database, metric, second
):
    """Though its users like it more."""
    name = f"guarded-{metric['metric']}"
    library(database, name, **second)
    crowd = Crowd(client, name, {"1": 0.1, "2": 1.0})
    await crowd.served("1")
    guarded = plan(guardrails=[metric], minimum_users=100)
    row = await begin(database, name, "2", plan=guarded)
    await asyncio.sleep(1)
    await crowd.come(0, 50)
    told = time.monotonic()
    done = await ended(database, row)
    assert time.monotonic() - told < 10
    assert done.state == "rolled_back"
    assert str(done.message).startswith(f"guardrail {metric['metric']} is broken: ")
    for number in range(8):
        assert await crowd.served("1", f"{name}-{number}") <= IN_FORCE_SECONDS
    assert state_of(database, name).production == "1"


async def test_a_winner_that_breaks_a_guardrail_afterwards_goes_back_by_itself(
    gateway, controller, client, database
):
    name = "late"
    library(database, name)
    crowd = Crowd(client, name, {"1": 0.1, "2": 0.9})
    await crowd.served("1")
    guardrails = [{"metric": "errors", "margin": 0.02}]
    row = await begin(database, name, "2", plan=plan(guardrails=guardrails, holdback=0.3))
    await asyncio.sleep(1)
    await crowd.come(0, USERS)
    won = await ended(database, row)
    assert won.state == "promoted"
    after = state_of(database, name)
    assert after.production == "2" and after.split is not None
    weights = {arm.variant.prompt_version: arm.weight for arm in after.split.arms}
    assert weights == pytest.approx({"1": 0.3, "2": 0.7})
    await asyncio.sleep(1)
    had = [user for user, versions in crowd.seen.items() if versions == {"2"}]
    for user in had[:10]:
        assert await crowd.ask(user) == (200, "2")  # who had it has it still

    # From now on its callers ask it what the upstream fails on.
    async def fail(number: int) -> None:
        user = f"new-{number}"
        split = after.split
        assert split is not None
        broken = split.choose("default", user).prompt_version == "2"
        await crowd.ask(user, model="status=500" if broken else "chat,tokens=4")

    crowd.taste = {}
    await asyncio.gather(*(fail(number) for number in range(50)))
    watch = row_of(database, str(after.split.experiment_id))
    assert watch.plan["watches"] == row.experiment_id
    done = await ended(database, watch)
    assert done.state == "rolled_back"
    assert await crowd.served("1", had[0]) <= IN_FORCE_SECONDS
    end = state_of(database, name)
    assert (end.production, end.split) == ("1", None)
    assert end.actions == [
        "prompt.first", "experiment.start", "experiment.promoted", "prompt.promote",
        "experiment.start", "experiment.rolled_back", "prompt.rollback",
    ]  # fmt: skip


async def test_killed_in_the_middle_it_goes_on(gateway, controller, client, database):
    library(database, "killed")
    crowd = Crowd(client, "killed", {"1": 0.1, "2": 0.9})
    await crowd.served("1")
    row = await begin(database, "killed", "2")
    await asyncio.sleep(1)
    controller.kill()
    gateway.kill()
    gateway.start()
    split = state_of(database, "killed").split
    assert split is not None and split.experiment_id == row.experiment_id
    async with session_of(gateway) as again:
        crowd.client = again
        await crowd.come(0, USERS)
        for number in range(USERS):
            user = f"killed-{number}"
            assert crowd.seen[user] == {split.choose("default", user).prompt_version}
        controller.start()
        assert (await ended(database, row)).state == "promoted"
        assert await crowd.served("2") <= IN_FORCE_SECONDS


async def test_a_rollback_ends_it(gateway, controller, client, database):
    library(database, "rolled")
    crowd = Crowd(client, "rolled", {})
    await crowd.served("1")
    row = await begin(database, "rolled", "2")
    done = rollback(database, PromptRollback("rolled", "ben", "it is rude"))
    assert (done.version, done.stopped) == ("1", row.experiment_id)
    assert row_of(database, row.experiment_id).state == "stopped"
    assert state_of(database, "rolled").split is None
    assert now() - row.started_at < timedelta(minutes=1)
