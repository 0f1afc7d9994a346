"""Rolling adapters out on engines that behave, and misbehave, like vLLM."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from pipelines.rollout import Replicas, RolloutFailed
from tests.gateway_process import free_port
from tests.pipelines.scripted_engine import BASE, ScriptedEngine

ONE, TWO = "extractor-3f2a90c1d4e5", "extractor-0123456789ab"
PATH = Path("/adapters") / ONE
FOLDERS = {ONE: PATH, TWO: Path("/adapters") / TWO}


@pytest.fixture
async def engines() -> AsyncIterator[list[ScriptedEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedEngine()) for _ in range(2)]


@pytest.fixture
def replicas(engines: list[ScriptedEngine]) -> Replicas:
    return Replicas([one.url for one in engines], prefixes=["extractor"], grace_seconds=0.3)


async def ask(engine: ScriptedEngine, model: str) -> tuple[int, str]:
    """Status and text of a chat completion."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.url}/chat/completions", json=body) as answer,
    ):
        said = await answer.json()
        return answer.status, said["choices"][0]["message"]["content"] if answer.ok else ""


async def test_an_adapter_is_on_every_replica(engines, replicas):
    loaded = await replicas.load(ONE, PATH)
    assert [(one.url, one.newly) for one in loaded] == [(one.url, True) for one in engines]
    for engine in engines:
        assert engine.adapters == {ONE: str(PATH)}
        assert await replicas.served(engine.url) == {BASE, ONE}
        assert await ask(engine, ONE) == (200, ONE)


async def test_again_loads_nothing(engines, replicas):
    await replicas.load(ONE, PATH)
    again = await replicas.load(ONE, PATH)
    assert [one.newly for one in again] == [False, False]
    assert [one.loads() for one in engines] == [[ONE], [ONE]]


async def test_two_at_once_are_one_load(engines, replicas):
    for engine in engines:
        engine.load_seconds = 0.2
    await asyncio.gather(replicas.load(ONE, PATH), replicas.load(ONE, PATH))
    assert [one.adapters for one in engines] == [{ONE: str(PATH)}] * 2


async def test_the_same_name_from_elsewhere_is_refused_and_stays(engines, replicas):
    await replicas.load(ONE, PATH)
    with pytest.raises(RolloutFailed, match=f"{ONE} comes from {PATH} there, not from /other"):
        await replicas.load(ONE, Path("/other"))
    assert [one.adapters for one in engines] == [{ONE: str(PATH)}] * 2


async def test_one_replica_away_and_the_other_lets_go(engines, replicas):
    await engines[1].go_away()
    with pytest.raises(RolloutFailed) as failed:
        await replicas.load(ONE, PATH)
    assert list(failed.value.failures) == [engines[1].url]
    assert "is away" in str(failed.value)
    assert engines[0].adapters == {}


async def test_what_was_there_before_a_failure_stays(engines, replicas):
    engines[0].adapters[ONE] = str(PATH)
    engines[1].refusal = (500, "no")
    with pytest.raises(RolloutFailed, match=f"{engines[1].url}: it answers 500: no"):
        await replicas.load(ONE, PATH)
    assert engines[0].adapters == {ONE: str(PATH)}


async def test_a_load_that_takes_too_long_is_undone_when_it_ends(engines, replicas):
    engines[1].load_seconds = 0.6
    began = time.monotonic()
    with pytest.raises(RolloutFailed, match="load_lora_adapter does not answer within"):
        await replicas.load(ONE, PATH, within=0.3)
    assert time.monotonic() - began < 2
    assert [one.adapters for one in engines] == [{}, {}]
    assert engines[1].calls[-1] == ("/v1/unload_lora_adapter", {"lora_name": ONE})


async def test_a_load_that_takes_its_time_is_waited_for(engines, replicas):
    engines[1].load_seconds = 0.5
    loaded = await replicas.load(ONE, PATH)
    assert loaded[1].seconds >= 0.5


async def test_an_adapter_that_never_appears(engines, replicas):
    engines[1].invisible = True
    with pytest.raises(RolloutFailed, match=f"took {ONE} but does not list it"):
        await replicas.load(ONE, PATH, within=0.4)
    assert [one.adapters for one in engines] == [{}, {}]


async def test_a_silent_replica(engines, replicas):
    engines[1].silent = True
    began = time.monotonic()
    with pytest.raises(RolloutFailed, match="/models does not answer within"):
        await replicas.load(ONE, PATH, within=0.3)
    assert time.monotonic() - began < 1
    assert engines[0].adapters == {}


@pytest.mark.parametrize(
    ("status", "said", "meant"),
    [
        (
            500,
            "Call to add_lora method failed: Worker failed with error 'LoRA rank 32 is greater "
            "than max_lora_rank 16.', please check the stack trace above for the root cause",
            "its rank 32 is above the engine's limit 16",
        ),
        (
            500,
            "Call to add_lora method failed: Worker failed with error 'The size of tensor a (576) "
            "must match the size of tensor b (1152) at non-singleton dimension 1', please check",
            "trained on another base model",
        ),
        (
            500,
            "Call to add_lora method failed: Worker failed with error 'While loading <path>, "
            "expected target modules in {'k_proj'} but received ['query_proj']"
            + ", 'query_proj'"
            * 500,
            "trained on another base model",
        ),
        (
            500,
            "Call to add_lora method failed: Worker failed with error 'Error while deserializing "
            "header: incomplete metadata, file not fully covered', please check the stack trace",
            "damaged or half-written",
        ),
        (
            404,
            f"Loading lora {ONE} failed: No adapter found for <path>",
            "does the engine see it under the same path",
        ),
        (400, f"The lora adapter '{ONE}' conflicts with a served base model.", "name of its own"),
        (500, "something new", "it answers 500: something new"),
    ],
)
async def test_what_the_engine_says_is_put_into_words(engines, replicas, status, said, meant):
    engines[0].refusal = (status, said)
    with pytest.raises(RolloutFailed) as failed:
        await replicas.load(ONE, PATH)
    assert meant in failed.value.failures[engines[0].url]
    assert f"(in {PATH})" in str(failed.value)
    assert len(str(failed.value)) < 1000


async def test_an_engine_that_takes_no_adapters(engines):
    async with ScriptedEngine(updating=False) as engine:
        with pytest.raises(RolloutFailed, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await Replicas([engine.url]).load(ONE, PATH)


async def test_a_key(engines):
    async with ScriptedEngine(key="secret") as engine:
        await Replicas([engine.url], "secret").load(ONE, PATH)
        with pytest.raises(RolloutFailed, match="is the key right"):
            await Replicas([engine.url], "wrong").load(TWO, PATH)


async def test_what_is_no_engine(engines):
    with pytest.raises(RolloutFailed, match="is away"):
        await Replicas([f"http://127.0.0.1:{free_port()}/v1"]).load(ONE, PATH)
    with pytest.raises(RolloutFailed, match="is it an engine"):
        await Replicas([f"{engines[0].url}/elsewhere"]).served(f"{engines[0].url}/elsewhere")
    with pytest.raises(ValueError, match="without replicas"):
        Replicas([])


async def test_unloading(engines, replicas):
    await replicas.load(ONE, PATH)
    del engines[0].adapters[ONE]
    await replicas.unload(ONE)
    await replicas.unload(ONE)
    assert [one.adapters for one in engines] == [{}, {}]
    await replicas.load(ONE, PATH)
    await engines[0].go_away()
    with pytest.raises(RolloutFailed, match="not unloaded everywhere"):
        await replicas.unload(ONE)
    assert engines[1].adapters == {}


async def test_requests_under_way_go_on(engines, replicas):
    await replicas.load(ONE, PATH)
    engines[0].answer_seconds = 0.3
    under_way = asyncio.gather(*(ask(engines[0], ONE) for _ in range(20)))
    await asyncio.sleep(0.1)
    await replicas.load(TWO, FOLDERS[TWO])
    await replicas.unload(ONE)
    assert await under_way == [(200, ONE)] * 20
    assert await ask(engines[0], ONE) == (404, "")


async def test_an_engine_that_restarted_gets_its_adapters_back(engines, replicas):
    for adapter, folder in FOLDERS.items():
        await replicas.load(adapter, folder)
    await engines[1].restart()
    states = await replicas.reconcile(FOLDERS)
    assert [set(one.loaded) for one in states] == [set(), {ONE, TWO}]
    assert [one.served for one in states] == [{BASE, ONE, TWO}] * 2
    assert engines[1].adapters == {name: str(path) for name, path in FOLDERS.items()}
    assert not any(one.failures for one in states)


async def test_a_replica_that_is_away_does_not_hold_the_others(engines, replicas):
    await engines[0].go_away()
    states = await replicas.reconcile({ONE: PATH})
    assert states[0].served == frozenset()
    assert "is away" in states[0].failures[0]
    assert states[1].loaded == (ONE,)
    await engines[0].come_back()
    states = await replicas.reconcile({ONE: PATH})
    assert [one.loaded for one in states] == [(ONE,), ()]


async def test_only_ours_go_and_only_after_the_grace_period(engines, replicas):
    theirs = {"extractor-v2", "other-3f2a90c1d4e5", "EXTRACTOR-3f2a90c1d4e5", f"{ONE}0"}
    for engine in engines:
        engine.adapters |= dict.fromkeys({ONE, TWO} | theirs, "/somewhere")
    states = await replicas.reconcile({ONE: PATH})
    assert [one.unloaded for one in states] == [(), ()]
    await asyncio.sleep(0.35)
    states = await replicas.reconcile({ONE: PATH})
    assert [one.unloaded for one in states] == [(TWO,), (TWO,)]
    assert [set(one.adapters) for one in engines] == [{ONE} | theirs] * 2
    assert states[0].served == {BASE, ONE} | theirs


async def test_the_grace_period_begins_anew_when_it_was_wanted_again(engines, replicas):
    await replicas.load(ONE, PATH)
    await replicas.reconcile({})
    await asyncio.sleep(0.2)
    await replicas.reconcile({ONE: PATH})
    await asyncio.sleep(0.2)
    states = await replicas.reconcile({})
    assert [one.unloaded for one in states] == [(), ()]
    assert engines[0].adapters == {ONE: str(PATH)}


async def test_without_prefixes_nothing_is_unloaded(engines):
    engines[0].adapters |= {ONE: "/x", "-3f2a90c1d4e5": "/x"}
    states = await Replicas([engines[0].url], grace_seconds=0).reconcile({})
    assert states[0].unloaded == ()


async def test_a_load_that_is_refused_is_not_tried_all_the_time(engines, replicas):
    engines[0].refusal = (404, f"Loading lora {ONE} failed: No adapter found for <path>")
    first = await replicas.reconcile({ONE: PATH, TWO: FOLDERS[TWO]})
    assert len(first[0].failures) == 2
    assert set(first[1].loaded) == {ONE, TWO}
    for _ in range(3):
        await replicas.reconcile({ONE: PATH, TWO: FOLDERS[TWO]})
    assert sorted(engines[0].loads()) == sorted([ONE, TWO])
