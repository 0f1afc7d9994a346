"""Variants on live traffic: a real worker, a scripted upstream, splits that change under load."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.database import Database, open_database
from gateway.request_log import LogReader
from gateway.splits import put_split
from gateway.variants import Arm, Split, Variant
from tests.gateway.test_request_path import CHAT, events, eventually
from tests.gateway.test_worker import writers
from tests.gateway_process import GatewayProcess, configuration
from tests.scripted_upstream import ScriptedUpstreamProcess

SALT = "00112233445566778899aabbccddeeff"
IN_FORCE_SECONDS = 1.0
PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": [{"role": "user", "content": "hello"}]}),
    "completions": ("/v1/completions", {"prompt": "hello"}),
    "embeddings": ("/v1/embeddings", {"input": "hello"}),
}


@pytest.fixture(scope="module")
def gateway(
    upstream: ScriptedUpstreamProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    given = configuration(
        upstream.url,
        upstreams={"up": {"url": upstream.url}, "second": {"url": upstream.url}},
        models={
            "asked": {"upstream": "up", "model": "chat", "price": {"input": 1, "output": 2}},
            "other": {
                "upstream": "second", "model": "chat,tokens=3", "max_output_tokens": 40,
                "price": {"input": 10, "output": 20},
            },
            "vectors": {"upstream": "second", "model": "embed", "price": {"input": 1}},
        },
    )  # fmt: skip
    process = GatewayProcess(tmp_path_factory.mktemp("splits") / "home", given).start()
    yield process
    process.stop()


@pytest.fixture
def database(gateway: GatewayProcess) -> Iterator[Database]:
    opened = open_database(gateway.settings.database_url)
    yield opened
    opened.close()


def split(alias: str, *variants: Variant, weights: tuple[float, ...] = ()) -> Split:
    shares = weights or (1.0,) * len(variants)
    arms = tuple(Arm(variant, weight) for variant, weight in zip(variants, shares, strict=True))
    return Split(alias, arms, "experiment-1", SALT)


def put(database: Database, *splits: Split) -> None:
    with database.transaction() as session:
        for one in splits:
            put_split(session, one)


def give(database: Database, alias: str, *variants: Variant) -> Split:
    """Write a split and wait as long as it may take to be in force."""
    written = split(alias, *variants)
    put(database, written)
    time.sleep(IN_FORCE_SECONDS)
    return written


@dataclass
class Reply:
    status: int
    headers: Any
    data: bytes
    row: Any = field(default_factory=dict)


async def ask(
    client: aiohttp.ClientSession, alias: str, endpoint: str = "chat", **fields: Any
) -> Reply:
    path, body = PATHS[endpoint]
    async with client.post(path, json={"model": alias, **body, **fields}) as answer:
        return Reply(answer.status, answer.headers, await answer.read())


async def logged(client, gateway: GatewayProcess, *arguments: Any, **fields: Any) -> Reply:
    reply = await ask(client, *arguments, **fields)
    reply.row = gateway.row(reply.headers["x-request-id"]).meta
    return reply


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_adapter_is_asked_by_its_name(
    client, gateway, database, upstream, endpoint, stream
):
    written = give(
        database, "asked", Variant("champion"), Variant("challenger", adapter="chat,tokens=2")
    )
    upstream.reset()
    wanted = [written.choose("default", f"user-{number}") for number in range(16)]
    for number, variant in enumerate(wanted):
        user = f"user-{number}"
        reply = await logged(client, gateway, "asked", endpoint, user=user, stream=stream)
        name = variant.adapter or "chat"
        assert (reply.status, reply.row["status"]) == (200, "ok")
        assert reply.headers["x-variant"] == reply.row["variant"] == variant.name
        assert reply.headers["x-model"] == reply.row["target"] == f"up/{name}"
        assert (reply.row["experiment"], reply.row["adapter"]) == ("experiment-1", variant.adapter)
        assert reply.row["model"] == "asked"
        # The adapter runs on the alias's own engine: its rates apply.
        tokens = reply.row["input_tokens"], reply.row["output_tokens"]
        assert tokens[1] == (2 if variant.adapter else 8)
        assert reply.row["cost_nano_usd"] == 1000 * tokens[0] + 2000 * tokens[1]
    asked = [call["body"]["model"] for call in upstream.calls()]
    assert asked == [variant.adapter or "chat" for variant in wanted]
    assert set(asked) == {"chat", "chat,tokens=2"}


async def test_who_sticks_user_else_episode_else_key(client, gateway, database):
    names = [Variant(f"v{index}") for index in range(64)]
    written = give(database, "asked", *names)
    token, _ = gateway.keys.generate(actor="test", tenant="acme", user_id="owner")
    own = {"authorization": f"Bearer {token}"}
    await asyncio.sleep(IN_FORCE_SECONDS)
    plain = gateway.key_record.key_id
    async with aiohttp.ClientSession(gateway.url, headers=own) as owner:
        for session, tenant, fields, unit in (
            (client, "default", {"user": "u1", "episode_id": "e1"}, "u1"),
            (client, "default", {"user": "", "episode_id": "e1"}, "e1"),
            (client, "default", {"episode_id": "e1"}, "e1"),
            (client, "default", {}, plain),
            (owner, "acme", {"user": "u1", "episode_id": "e1"}, "u1"),
            (owner, "acme", {"episode_id": "e1"}, "owner"),
        ):
            for _ in range(3):
                reply = await ask(session, "asked", **fields)
                assert reply.headers["x-variant"] == written.choose(tenant, unit).name


async def test_another_alias_answers_at_its_own_price(client, gateway, database, upstream):
    """And no key is asked for it: the key was allowed the public name."""
    give(database, "asked", Variant("big", target="other", adapter="chat,tokens=5"))
    token, _ = gateway.keys.generate(actor="test", models=["asked"])
    await asyncio.sleep(IN_FORCE_SECONDS)
    headers = {"authorization": f"Bearer {token}"}
    upstream.reset()
    async with aiohttp.ClientSession(gateway.url, headers=headers) as narrow:
        assert (await ask(narrow, "other")).status == 404
        reply = await logged(narrow, gateway, "asked", max_tokens=100)
    assert reply.headers["x-model"] == reply.row["target"] == "second/chat,tokens=5"
    assert (reply.row["model"], reply.row["adapter"]) == ("asked", "chat,tokens=5")
    cost = 10_000 * reply.row["input_tokens"] + 20_000 * reply.row["output_tokens"]
    assert reply.row["cost_nano_usd"] == cost > 0
    assert upstream.calls()[0]["body"]["max_tokens"] == 40


async def test_a_variants_parameters_take_the_place_of_the_callers(
    client, gateway, database, upstream
):
    cold = {"temperature": 0, "max_tokens": 24, "top_k": 1}
    give(database, "asked", Variant("cold", parameters=cold))
    upstream.reset()
    reply = await ask(client, "asked", temperature=1.5, max_completion_tokens=900, seed=7)
    assert reply.status == 200
    sent = upstream.calls()[0]["body"]
    assert {name: sent[name] for name in cold} == cold
    assert sent["seed"] == 7 and "max_completion_tokens" not in sent
    entry = gateway.row(reply.headers["x-request-id"])
    assert orjson.loads(entry.request)["temperature"] == 1.5, "the log has what the caller sent"


async def test_embeddings_take_part_only_where_a_target_is_named(client, gateway, database):
    give(database, "vectors", Variant("text", adapter="embed,slow-ms=1"))
    reply = await logged(client, gateway, "vectors", "embeddings")
    assert reply.status == 200 and "x-variant" not in reply.headers
    assert (reply.row["variant"], reply.row["adapter"]) == (None, None)
    give(database, "embed", Variant("new", target="vectors"))
    reply = await logged(client, gateway, "embed", "embeddings")
    assert (reply.status, reply.headers["x-variant"]) == (200, "new")
    assert (reply.row["target"], reply.row["variant"]) == ("second/embed", "new")


async def test_a_target_that_is_gone_is_a_503_until_it_is_back(client, gateway, database):
    give(database, "asked", Variant("lost", target="other"))
    assert (await ask(client, "asked")).status == 200
    models = {name: m for name, m in gateway.given["models"].items() if name != "other"}
    said = "split of asked: variant lost: target other is not a model"
    before = gateway.output().count(said)
    gateway.write({**gateway.given, "models": models})
    try:
        await asyncio.sleep(1.5)
        for _ in range(3):
            reply = await logged(client, gateway, "asked")
            assert reply.status == 503
            error = orjson.loads(reply.data)["error"]
            assert error["code"] == reply.row["error_code"] == "variant_not_configured"
            assert all(name in error["message"] for name in ("'asked'", "'lost'", "'other'"))
            assert (reply.row["status"], reply.row["variant"]) == ("failed", "lost")
            assert reply.row["target"] is None and "x-model" not in reply.headers
    finally:
        gateway.write(gateway.given)
    assert gateway.output().count(said) == before + 1
    await asyncio.sleep(1.5)
    assert (await ask(client, "asked")).status == 200


async def test_what_has_no_split_has_no_variant(client, gateway):
    reply = await logged(client, gateway, "chat,tokens=1")
    assert "x-variant" not in reply.headers
    assert [reply.row[name] for name in ("variant", "experiment", "adapter")] == [None] * 3


async def test_the_log_shows_variant_experiment_and_adapter(client, gateway, database):
    give(database, "asked", Variant("one", adapter="chat,tokens=2"))
    reply = await ask(client, "asked")
    reader = LogReader(gateway.settings.spool_dir, gateway.settings.log_table)
    row = await eventually(lambda: reader.row(reply.headers["x-request-id"]))
    shown = [row[name] for name in ("variant", "experiment", "adapter", "target")]
    assert shown == ["one", "experiment-1", "chat,tokens=2", "up/chat,tokens=2"]


@dataclass
class Seen:
    """One answer: when it was asked for, what came, and as whose."""

    began: float
    status: int
    variant: str
    model: str
    broken: bool


class Crowd:
    """Sixty users who ask without end, every second one for a stream."""

    def __init__(self, client: aiohttp.ClientSession):
        self.client = client
        self.seen: list[Seen] = []

    @asynccontextmanager
    async def asking(self):
        tasks = [asyncio.create_task(self._user(number)) for number in range(60)]
        try:
            yield
        finally:
            self.stopped = True
            await asyncio.gather(*tasks)

    stopped = False

    async def _user(self, number: int) -> None:
        path, body = PATHS["chat"]
        stream = number % 2 == 0
        body = {"model": "asked", **body, "user": f"u{number}", "stream": stream}
        while not self.stopped:
            began = time.monotonic()
            async with self.client.post(path, json=body) as answer:
                if stream and answer.status == 200:
                    found = await events(answer)
                    broken = found[-1] != "[DONE]" or any("error" in one for one in found[:-1])
                else:
                    broken = "error" in await answer.json()
            headers = answer.headers
            self.seen.append(
                Seen(began, answer.status, headers["x-variant"], headers["x-model"], broken)
            )
            await asyncio.sleep(random.uniform(0.1, 0.3))


async def test_no_request_fails_while_a_split_changes(gateway, database):
    """And every request that begins a second after a change sees it."""
    changes: list[float] = []

    def change(number: int) -> None:
        name = f"chat,tokens=20,paced-ms={number + 1}"
        arms = Variant(f"{number}-base"), Variant(f"{number}-tuned", adapter=name)
        weights = ((0.5, 0.5), (0.0, 1.0), (1.0, 0.0))[number % 3]
        put(database, split("asked", *arms, weights=weights))
        changes.append(time.monotonic())

    change(0)
    await asyncio.sleep(IN_FORCE_SECONDS)
    headers = {"authorization": f"Bearer {gateway.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(gateway.url, headers=headers, connector=connector) as client:
        crowd = Crowd(client)
        async with crowd.asking():
            for number in range(1, 6):
                await asyncio.sleep(1.2)
                await asyncio.to_thread(change, number)
            await asyncio.sleep(1.2)
    assert len(crowd.seen) > 500
    assert not [one for one in crowd.seen if one.status != 200 or one.broken]
    for one in crowd.seen:
        name, _, arm = one.variant.partition("-")
        change_seen = int(name)
        tuned = f"up/chat,tokens=20,paced-ms={change_seen + 1}"
        assert one.model == (tuned if arm == "tuned" else "up/chat"), (
            "arm and model are of one split"
        )
        in_force = sum(moment < one.began - IN_FORCE_SECONDS for moment in changes) - 1
        assert change_seen >= in_force, f"{one.began - changes[change_seen + 1]} s too late"
    assert {one.variant for one in crowd.seen} >= {"0-base", "0-tuned", "1-tuned", "5-base"}
    assert not {one.variant for one in crowd.seen} & {"1-base", "2-tuned"}, "no weight, nobody"


async def test_two_workers_agree(upstream, tmp_path):
    given = configuration(upstream.url)
    workers = [GatewayProcess(tmp_path / "home", given) for _ in range(2)]
    first = workers[0]
    database = open_database(first.settings.database_url)
    users = [f"user-{number}" for number in range(30)]
    connector = aiohttp.TCPConnector(force_close=True)
    headers = {"authorization": f"Bearer {first.key}"}
    try:
        for worker in workers:
            worker.start()
        written = give(database, "chat", *(Variant(f"v{index}") for index in range(8)))
        async with aiohttp.ClientSession(first.url, headers=headers, connector=connector) as client:
            for salt in (SALT, SALT[::-1]):
                written = Split("chat", written.arms, None, salt)
                await asyncio.to_thread(put, database, written)
                await asyncio.sleep(IN_FORCE_SECONDS)
                for user in users * 3:
                    reply = await ask(client, "chat", user=user)
                    assert reply.headers["x-variant"] == written.choose("default", user).name
        assert len(writers(first, at_least=2000)) == 2, "both workers answered"
    finally:
        database.close()
        for worker in workers:
            worker.stop()
