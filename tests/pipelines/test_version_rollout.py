"""Rolling versions of tabular models out on servers that behave, and misbehave, like KServe's.

`tests/gateway/test_tabular_server.py` does it on the real one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

from deploy.migrations import upgrade
from gateway.settings import load_settings
from pipelines.engines import engine_of, wanted_adapters
from pipelines.installation import open_installation
from pipelines.model_server_replica import ModelServerReplica
from pipelines.rollout import Replicas, RolloutFailed
from tests.gateway_process import configuration, free_port
from tests.pipelines.scripted_engine import ScriptedEngine
from tests.pipelines.scripted_model_server import ScriptedModelServer

ONE, TWO = "flight-delay-3f2a90c1d4e5", "flight-delay-0123456789ab"
FOLDERS = {name: Path("/home/tabular") / name for name in (ONE, TWO)}


@pytest.fixture
async def servers() -> AsyncIterator[list[ScriptedModelServer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedModelServer()) for _ in range(2)]


def replicas_on(*urls: str) -> Replicas:
    return Replicas(urls, prefixes=["flight-delay"], grace_seconds=0.3, replica=ModelServerReplica)


@pytest.fixture
def replicas(servers: list[ScriptedModelServer]) -> Replicas:
    return replicas_on(*(one.url for one in servers))


async def test_a_version_is_ready_on_every_replica(servers, replicas):
    loaded = await replicas.load(ONE, FOLDERS[ONE])
    assert [one.newly for one in loaded] == [True, True]
    again = await replicas.load(ONE, Path("/elsewhere") / ONE)
    assert [one.newly for one in again] == [False, False]
    assert [one.loads() for one in servers] == [[ONE], [ONE]]
    assert await replicas.served(servers[0].url) == {ONE}


async def test_why_a_version_is_refused_is_told_and_the_others_let_go(servers, replicas):
    await replicas.load(TWO, FOLDERS[TWO])
    servers[1].refusal = "/home/tabular/x: was saved as pickle"
    with pytest.raises(RolloutFailed) as failed:
        await replicas.load(ONE, FOLDERS[ONE])
    assert failed.value.failures == {servers[1].url: servers[1].refusal}
    assert [one.versions for one in servers] == [{TWO}, {TWO}]


async def test_a_version_that_is_never_ready(servers, replicas):
    servers[1].unready = True
    with pytest.raises(RolloutFailed, match=f"took {ONE} but does not list it"):
        await replicas.load(ONE, FOLDERS[ONE], within=0.4)
    assert [one.versions for one in servers] == [set(), set()]


async def test_a_load_that_takes_too_long_and_a_silent_server(servers, replicas):
    servers[0].load_seconds = 5
    with pytest.raises(RolloutFailed, match="/load does not answer within"):
        await replicas.load(ONE, FOLDERS[ONE], within=0.3)
    servers[0].silent = True
    with pytest.raises(RolloutFailed, match="/models does not answer within"):
        await replicas.load(ONE, FOLDERS[ONE], within=0.3)
    assert servers[1].versions == set()


async def test_what_is_no_model_server():
    with pytest.raises(RolloutFailed, match="is away"):
        await replicas_on(f"http://127.0.0.1:{free_port()}/v2").load(ONE, FOLDERS[ONE])
    async with ScriptedEngine() as engine:
        url = engine.url.replace("/v1", "/v2")
        with pytest.raises(RolloutFailed, match="is it a KServe model server"):
            await replicas_on(url).load(ONE, FOLDERS[ONE])


async def test_a_server_that_restarted_gets_its_versions_back_and_old_ones_go(servers, replicas):
    for name, folder in FOLDERS.items():
        await replicas.load(name, folder)
    servers[1].versions.clear()
    states = await replicas.reconcile(FOLDERS)
    assert [set(one.loaded) for one in states] == [set(), {ONE, TWO}]
    await replicas.reconcile({ONE: FOLDERS[ONE]})
    await asyncio.sleep(0.35)
    servers[0].versions.add("by-hand")
    states = await replicas.reconcile({ONE: FOLDERS[ONE]})
    assert [one.unloaded for one in states] == [(TWO,), (TWO,)]
    assert [one.versions for one in servers] == [{ONE, "by-hand"}, {ONE}]


async def test_unloading(servers, replicas):
    await replicas.load(ONE, FOLDERS[ONE])
    servers[0].versions.clear()
    await replicas.unload(ONE)
    assert [one.versions for one in servers] == [set(), set()]


async def test_the_upstream_decides_how_its_replicas_are_spoken_to(tmp_path, servers):
    settings = load_settings({"LLMOPS_HOME": str(tmp_path)})
    upgrade(settings.database_url)
    urls = [one.url for one in servers]
    given = configuration(
        "http://127.0.0.1:9/v1",
        upstreams={"kserve": {"kind": "kserve", "url": urls[0], "replicas": urls}},
        models={"flight-delay": {"upstream": "kserve", "model": ONE}},
    )
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(given))
    with open_installation(settings) as installation:
        engine = engine_of(installation, "flight-delay")
        assert wanted_adapters(installation) == {engine: {ONE: tmp_path / "tabular" / ONE}}
        await engine.replicas().load(ONE, FOLDERS[ONE])
    assert [one.versions for one in servers] == [{ONE}, {ONE}]
