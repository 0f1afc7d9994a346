"""The embedding server as a process, with a real Redis, Feast and MiniLM, over its socket."""

import asyncio
import base64
import signal
import struct
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from tests.embedding_client import EmbeddingClient as Client
from tests.embedding_stack import EmbeddingServerProcess, RedisProcess
from tests.gateway_process import GatewayProcess, configuration
from tests.scripted_answers import embedding as scripted_vector
from tests.scripted_upstream import ScriptedUpstreamProcess

MODEL = "all-MiniLM-L6-v2"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass
class Parts:
    redis: RedisProcess
    upstream: ScriptedUpstreamProcess
    server: EmbeddingServerProcess


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("embeddings")
    with RedisProcess(folder) as redis, ScriptedUpstreamProcess() as upstream:
        other = {"source": "upstream", "url": upstream.url}
        scripts = ["embed", "embed,slow-ms=300", "embed,status=429", "embed,status=400"]
        scripts += ["embed,refuse", "embed,not-json", "embed,status=401", "embed,no-usage"]
        models: dict[str, Any] = dict.fromkeys(scripts, other)
        models["wrong-length"] = {**other, "model": "embed", "dimensions": 100}
        models[MODEL] = {}
        settings = {"redis_url": redis.url, "models": models}
        with EmbeddingServerProcess(folder, settings) as server:
            yield Parts(redis, upstream, server)


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=200)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(
        parts.server.url, connector=connector, timeout=timeout
    ) as session:
        yield Client(session)


def vectors(body: Any) -> np.ndarray:
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return np.array([item["embedding"] for item in body["data"]], "<f4")


async def test_the_second_time_comes_from_the_cache(client: Client):
    cache, first = await client.ask("A text of its own")
    assert cache == "miss 0/1"
    await client.settle()
    cache, second = await client.ask("A text of its own")
    assert cache == "hit 1/1"
    assert first["data"] == second["data"]
    assert first["object"] == "list" and first["model"] == MODEL
    assert first["usage"]["prompt_tokens"] == first["usage"]["total_tokens"] == 7
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}
    assert np.linalg.norm(vectors(first)[0]) == pytest.approx(1, abs=1e-5)


async def test_the_vectors_mean_something(client: Client):
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    near, other = (
        vectors((await client.ask(texts))[1]) @ vectors((await client.ask(texts))[1])[0]
    )[1:]
    assert near > 0.5 > 0.2 > other


async def test_only_what_is_missing_is_computed_and_order_is_kept(client: Client):
    kept = [f"kept text {i}" for i in range(5)]
    _, before = await client.ask(kept)
    await client.settle()
    computed = await client.count("computed_total")
    mixed = ["new text 1", kept[3], "new text 2", kept[0], "new text 1", kept[3]]
    cache, body = await client.ask(mixed)
    assert cache == "partial 3/6"
    assert await client.count("computed_total") - computed == 2
    got, known = vectors(body), vectors(before)
    assert (got[1] == known[3]).all() and (got[3] == known[0]).all() and (got[5] == known[3]).all()
    assert (got[0] == got[4]).all() and not (got[0] == got[2]).all()
    usage = body["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    await client.settle()
    cache, again = await client.ask(mixed)
    assert cache == "hit 6/6" and again["data"] == body["data"]


async def test_two_hundred_and_fifty_six_at_once(client: Client):
    texts = [f"row {i}" for i in range(256)]
    _, first = await client.ask(texts)
    await client.settle()
    cache, second = await client.ask(list(reversed(texts)))
    assert cache == "hit 256/256"
    assert (vectors(second)[::-1] == vectors(first)).all()


async def test_base64_is_little_endian_float32(client: Client):
    _, plain = await client.ask(["encoded", "text"])
    await client.settle()
    cache, body = await client.ask(["encoded", "text"], encoding_format="base64")
    assert cache == "hit 2/2"
    for item, vector in zip(body["data"], vectors(plain), strict=True):
        assert struct.unpack("<384f", base64.b64decode(item["embedding"])) == tuple(vector)


async def test_dimensions_shorten_and_have_keys_of_their_own(client: Client):
    _, full = await client.ask("a long vector")
    cache, short = await client.ask("a long vector", dimensions=64)
    assert cache == "miss 0/1"
    head = vectors(full)[0][:64]
    assert vectors(short)[0] == pytest.approx(head / np.linalg.norm(head), abs=1e-6)
    await client.settle()
    assert (await client.ask("a long vector", dimensions=64))[0] == "hit 1/1"
    status, _, body = await client.post({"model": MODEL, "input": "x", "dimensions": 385})
    assert status == 400 and body["error"]["param"] == "dimensions"


async def test_tenants_are_apart(client: Client):
    await client.ask("a secret", tenant="one")
    await client.settle()
    assert (await client.ask("a secret", tenant="one"))[0] == "hit 1/1"
    for tenant in ("two", "one/", "One", None):
        assert (await client.ask("a secret", tenant=tenant))[0] == "miss 0/1"
        await client.settle()
        assert (await client.ask("a secret", tenant="two"))[0] == "hit 1/1"


async def test_composed_and_decomposed_are_one_text(client: Client):
    _, first = await client.ask(unicodedata.normalize("NFC", "Größe in Zürich"))
    await client.settle()
    cache, second = await client.ask(unicodedata.normalize("NFD", "Größe in Zürich"))
    assert cache == "hit 1/1" and first["data"] == second["data"]


async def test_concurrent_misses_are_one_computation(client: Client, parts: Parts):
    parts.upstream.reset()
    texts = ["wanted by many", "and this"]
    answers = await asyncio.gather(
        *(client.ask(texts[i % 2 :], model="embed,slow-ms=300") for i in range(60))
    )
    calls = parts.upstream.calls()
    assert sorted(text for call in calls for text in call["body"]["input"]) == sorted(texts)
    expected = [scripted_vector(text, 384) for text in texts]
    for index, (_, body) in enumerate(answers):
        assert vectors(body) == pytest.approx(np.array(expected[index % 2 :], "<f4"))


async def test_cache_control(client: Client):
    assert (await client.ask("fleeting", cache={"no_store": True}))[0] == "miss 0/1"
    await client.settle()
    assert (await client.ask("fleeting", cache={"ttl": 1}))[0] == "miss 0/1"
    await client.settle()
    assert (await client.ask("fleeting", cache={"ttl": 1}))[0] == "hit 1/1"
    computed = await client.count("computed_total")
    assert (await client.ask("fleeting", cache={"no_cache": True, "no_store": True}))[
        0
    ] == "miss 0/1"
    assert await client.count("computed_total") == computed + 1
    await asyncio.sleep(2.1)
    assert (await client.ask("fleeting"))[0] == "miss 0/1"


async def test_what_redis_holds_expires(client: Client, parts: Parts):
    await client.ask("kept for a week", tenant="expiry")
    await client.settle()
    with parts.redis.client() as redis:
        keys = [key for key in redis.scan_iter() if b"expiry/" in key]
        assert len(keys) == 1
        assert 0 < redis.ttl(keys[0]) <= 7 * 24 * 3600


async def test_a_damaged_entry_is_computed_again(client: Client, parts: Parts):
    _, first = await client.ask("to be damaged", tenant="damage")
    await client.settle()
    with parts.redis.client() as redis:
        [key] = [key for key in redis.scan_iter() if b"damage/" in key]
        for field, value in redis.hgetall(key).items():
            redis.hset(key, field, value[:-4] + b"\1\2\3\4")
    cache, second = await client.ask("to be damaged", tenant="damage")
    assert cache == "miss 0/1" and vectors(second) == pytest.approx(vectors(first), abs=1e-6)
    await client.settle()
    assert (await client.ask("to be damaged", tenant="damage"))[0] == "hit 1/1"


async def test_a_flushed_redis_is_filled_again(client: Client, parts: Parts):
    await client.ask("flushed away")
    await client.settle()
    with parts.redis.client() as redis:
        redis.flushall()
    assert (await client.ask("flushed away"))[0] == "miss 0/1"
    await client.settle()
    assert (await client.ask("flushed away"))[0] == "hit 1/1"


async def test_a_frozen_redis_costs_one_time_out_and_heals(client: Client, parts: Parts):
    await client.ask(["warm", "up"])
    await client.settle()
    parts.redis.freeze()
    try:
        started = time.monotonic()
        assert (await client.ask("while frozen"))[0] == "miss 0/1"
        assert time.monotonic() - started < 2
        assert await client.count("cache_away") == 1
        spent = []
        for i in range(10):
            started = time.monotonic()
            cache, _ = await client.ask(["warm", f"while frozen {i}"])
            assert cache == "miss 0/2"
            spent.append(time.monotonic() - started)
        assert sorted(spent)[5] < 0.2
    finally:
        parts.redis.thaw()
    await client.until("cache_away", 0)
    await client.settle()
    assert (await client.ask(["warm", "while frozen", "while frozen 9"]))[0] == "hit 3/3"


async def test_without_redis_it_computes_and_keeps_it_for_later(client: Client, parts: Parts):
    parts.redis.kill()
    try:
        for _ in range(3):
            assert (await client.ask("while redis is dead"))[0] == "miss 0/1"
        assert await client.count("cache_away") == 1
        assert await client.count("queued") >= 1
    finally:
        parts.redis.start()
    await client.until("cache_away", 0)
    await client.settle()
    assert (await client.ask("while redis is dead"))[0] == "hit 1/1"
    assert await client.count("dropped_total") == 0


async def test_another_server_is_asked_for_misses_only(client: Client, parts: Parts):
    parts.upstream.reset()
    texts = [f"from elsewhere {i}" for i in range(300)]
    cache, body = await client.ask(texts[:290], model="embed")
    assert cache == "miss 0/290"
    assert [len(call["body"]["input"]) for call in parts.upstream.calls()] == [256, 34]
    assert body["usage"]["prompt_tokens"] == 3 * 290
    await client.settle()
    cache, body = await client.ask(texts, model="embed")
    assert cache == "partial 290/300"
    assert parts.upstream.calls()[-1]["body"]["input"] == texts[290:]
    assert body["usage"]["prompt_tokens"] == 900
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 870
    assert vectors(body)[299] == pytest.approx(np.array(scripted_vector(texts[299], 384), "<f4"))


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("embed,status=429", 429, "upstream_rate_limited"),
        ("embed,status=400", 400, "upstream_refused"),
        ("embed,status=401", 502, "upstream_broken"),
        ("embed,refuse", 502, "upstream_broken"),
        ("embed,not-json", 502, "upstream_broken"),
        ("wrong-length", 502, "upstream_broken"),
    ],
)
async def test_another_servers_errors_are_mapped(
    client: Client, model: str, status: int, code: str
):
    got, _, body = await client.post({"model": model, "input": ["x"]})
    assert got == status and body["error"]["code"] in (code, None), body


async def test_tokens_are_estimated_where_nobody_counts(client: Client):
    _, body = await client.ask("twelve chars", model="embed,no-usage")
    assert body["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "input"),
        ({"input": "x"}, "model"),
        ({"model": MODEL, "input": ""}, "input"),
        ({"model": MODEL, "input": []}, "input"),
        ({"model": MODEL, "input": ["a", ""]}, "input"),
        ({"model": MODEL, "input": ["a", 3]}, "input"),
        ({"model": MODEL, "input": ["a"] * 2049}, "input"),
        ({"model": MODEL, "input": [1, 2, 3]}, "input"),
        ({"model": MODEL, "input": [[1, 2], [3]]}, "input"),
        ({"model": MODEL, "input": {"a": 1}}, "input"),
        ({"model": MODEL, "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"model": MODEL, "input": "x", "dimensions": 0}, "dimensions"),
        ({"model": MODEL, "input": "x", "dimensions": "many"}, "dimensions"),
        ({"model": MODEL, "input": "x", "surprise": 1}, "surprise"),
        ({"model": MODEL, "input": "x", "cache": {"ttl": 0}}, "cache"),
        ({"model": MODEL, "input": "x", "cache": {"ttl": True}}, "cache"),
        ({"model": MODEL, "input": "x", "cache": {"no_cache": 1}}, "cache"),
        ({"model": MODEL, "input": "x", "cache": {"other": 1}}, "cache"),
        (b'{"model": "all-MiniLM-L6-v2", "input": "\\ud800"}', None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b"", None),
    ],
)
async def test_bad_requests(client: Client, body: Any, param: str | None):
    status, _, answer = await client.post(body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param


async def test_unknown_models_paths_and_methods(client: Client, parts: Parts):
    status, _, body = await client.post({"model": "gpt-4", "input": "x"})
    assert status == 404 and body["error"]["code"] == "model_not_found"
    async with aiohttp.ClientSession(parts.server.url) as session:
        async with session.get("/v1/embeddings") as answer:
            assert answer.status == 405
        async with session.post("/v1/chat/completions") as answer:
            assert answer.status == 404
        async with session.get("/v1/models") as answer:
            assert MODEL in [model["id"] for model in (await answer.json())["data"]]
        async with session.get("/health/live") as answer:
            assert answer.status == 200
        async with session.post("/v1/embeddings", data=b"x" * 9_000_000) as answer:
            assert answer.status == 413


async def test_odd_texts_are_embedded(client: Client):
    odd = [" ", "\n", "\0", "🦊", "long " * 2000, "ﬁ", "\u200b"]
    status, headers, body = await client.post({"model": MODEL, "input": odd})
    assert status == 200 and headers["x-truncated-items"] == "1/7"
    assert np.isfinite(vectors(body)).all()


async def test_the_loop_stays_free_while_the_model_computes(client: Client):
    await client.ask("a hit beside the work")
    await client.settle()
    work = asyncio.create_task(client.ask([f"work {i} " * 40 for i in range(40)]))
    await asyncio.sleep(0.1)
    spent = []
    while not work.done():
        started = time.monotonic()
        assert (await client.ask("a hit beside the work"))[0] == "hit 1/1"
        spent.append(time.monotonic() - started)
    await work
    assert len(spent) > 10 and sorted(spent)[len(spent) // 2] < 0.05


async def test_through_the_gateway(parts: Parts, tmp_path: Path):
    upstreams = {"up": {"url": f"{parts.server.url}/v1", "tell_tenant": True}}
    given = configuration(f"{parts.server.url}/v1", upstreams=upstreams)
    gateway = GatewayProcess(tmp_path / "gateway", given).start()
    try:
        headers = {"authorization": f"Bearer {gateway.key}"}
        async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
            body = {"model": MODEL, "input": ["through", "the gateway"], "cache": {"ttl": 60}}
            for expected in ("miss", "hit"):
                async with session.post("/v1/embeddings", json=body) as answer:
                    assert answer.status == 200
                    assert answer.headers["x-cache"] == expected
                    usage = (await answer.json())["usage"]
                async with aiohttp.ClientSession(parts.server.url) as direct:
                    await Client(direct).settle()
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] > 0
        records = [entry.meta for entry in gateway.finals().values()]
        assert [record["cache"] for record in records] == ["miss", "hit"]
        assert records[1]["cached_tokens"] == usage["prompt_tokens"]
    finally:
        gateway.stop()


async def test_the_end_writes_what_is_queued(client: Client, parts: Parts):
    """Last in the module: it ends the server."""
    texts = [f"last words {i}" for i in range(512)]
    await client.ask(texts, model="embed", tenant="last")
    assert parts.server.stop() in (0, -signal.SIGTERM)
    with parts.redis.client() as redis:
        assert len([key for key in redis.scan_iter(count=10_000) if b"last/" in key]) == 512
