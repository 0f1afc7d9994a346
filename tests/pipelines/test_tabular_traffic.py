"""Promotion, rollback, experiments and the controller for an alias that a model server answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

from deploy.migrations import upgrade
from evals.records import Decision
from gateway.database import Conflict, Database
from gateway.settings import load_settings
from pipelines.champion import Services
from pipelines.controller import AdapterKeeper, Watched
from pipelines.engines import services_for
from pipelines.experiment import conclude
from pipelines.findings import Finding, find
from pipelines.installation import Installation, open_installation
from pipelines.promotion import Promotion, Rollback, promote, rollback
from pipelines.rollout import RolloutFailed
from tests.gateway_process import configuration
from tests.pipelines.lifecycle import ALIAS, adapter_name, begin, seed_version, state_of
from tests.pipelines.observed_users import GOOD, observed
from tests.pipelines.scripted_model_server import ScriptedModelServer

ONE, TWO = adapter_name("1"), adapter_name("2")


@pytest.fixture
async def servers() -> AsyncIterator[list[ScriptedModelServer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedModelServer()) for _ in range(2)]


@pytest.fixture
def installation(tmp_path, servers):
    settings = load_settings({"LLMOPS_HOME": str(tmp_path)})
    urls = [one.url for one in servers]
    given = configuration(
        "http://127.0.0.1:9/v1",
        upstreams={"kserve": {"kind": "kserve", "url": urls[0], "replicas": urls}},
        models={ALIAS: {"upstream": "kserve"}},
    )
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(given))
    upgrade(settings.database_url)
    with open_installation(settings) as opened:
        for version in ("1", "2"):
            seed_version(opened.database, version)
        yield opened


@pytest.fixture
def services(installation: Installation) -> Services:
    return services_for(installation, ALIAS)


@pytest.fixture
def database(installation: Installation) -> Database:
    return installation.database


async def promoted(services: Services, version: str) -> None:
    await promote(services, Promotion(ALIAS, ALIAS, version, "anna", "it is better"))


async def back(services: Services, *, accept_base: bool = False) -> None:
    await rollback(services, Rollback(ALIAS, "ben", "it errs", None, accept_base))


async def test_a_first_version_a_second_one_and_back(services, servers, database):
    with pytest.raises(Conflict, match="no version answers it yet"):
        await begin(services, "1")
    await promoted(services, "1")
    assert [one.versions for one in servers] == [{ONE}, {ONE}]
    assert state_of(database).arms() == {"champion": ONE}
    await promoted(services, "2")
    assert state_of(database).arms() == {"champion": TWO}
    servers[1].versions.clear()
    await back(services)
    assert state_of(database).arms() == {"champion": ONE}
    assert servers[1].versions == {ONE}
    with pytest.raises(Conflict, match="version 1 is its first, and below it nothing"):
        await back(services, accept_base=True)
    assert state_of(database).arms() == {"champion": ONE}


async def test_a_version_whose_server_never_gets_ready_changes_nothing(services, servers, database):
    await promoted(services, "1")
    servers[1].refusal = "/home/tabular/x/model.skops: cannot be read: torn"
    for move in (promoted(services, "2"), begin(services, "2")):
        with pytest.raises(RolloutFailed, match="cannot be read: torn"):
            await move
    after = state_of(database)
    assert (after.arms(), after.experiments) == ({"champion": ONE}, [])
    assert [one.versions for one in servers] == [{ONE}, {ONE}]
    servers[1].refusal, servers[1].unready = None, True
    with pytest.raises(RolloutFailed, match="does not list it"):
        await services.replicas.load(TWO, Path("/home/tabular") / TWO, 0.3)
    assert servers[0].versions == {ONE}


async def test_an_experiment_and_its_winner(services, servers, database):
    await promoted(services, "1")
    experiment = await begin(services, "2")
    assert state_of(database).arms() == {"champion": ONE, "challenger": TWO}
    assert [one.versions for one in servers] == [{ONE, TWO}] * 2
    finding: Finding = find(experiment, observed([0.0] * 300, GOOD * 10), experiment.started_at)
    assert finding.decision is Decision.PROMOTE
    await conclude(services, experiment.experiment_id, finding)
    after = state_of(database)
    assert after.arms() == {"champion": TWO}
    assert after.experiments[0].state == "promoted"


async def test_the_controller_keeps_and_clears_what_servers_hold(
    services, servers, installation, monkeypatch
):
    monkeypatch.setattr("pipelines.controller.GRACE_SECONDS", 0.2)
    await promoted(services, "1")
    keeper = AdapterKeeper(Watched(installation))
    assert await keeper.step() == []
    servers[1].versions.clear()
    servers[0].versions |= {TWO, "by-hand"}
    assert await keeper.step() == [f"loaded {ONE} on {servers[1].url}"]
    await asyncio.sleep(0.3)
    assert await keeper.step() == [f"unloaded {TWO} from {servers[0].url}"]
    assert [one.versions for one in servers] == [{ONE, "by-hand"}, {ONE}]
    await servers[0].go_away()
    (failure,) = await keeper.step()
    assert "is away" in str(failure)
