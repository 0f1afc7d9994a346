"""The request path, from a real client over a real worker to a scripted upstream and the log."""

import asyncio
import time
from typing import Any

import aiohttp
import orjson
import pytest
from openai import AsyncOpenAI

from gateway.protocol import Connection
from tests.gateway_process import GatewayProcess, configuration

CHAT = "/v1/chat/completions"


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    text = (await response.read()).decode()
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [item if item == "[DONE]" else orjson.loads(item) for item in data]


async def eventually(check: Any, seconds: float = 5.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found or time.monotonic() > end:
            return found
        await asyncio.sleep(0.02)


async def test_a_unary_answer_is_passed_on_and_logged_with_its_cost(client, gateway):
    async with client.post(CHAT, json=chat("chat,tokens=5", metadata={"app": "t"})) as response:
        body = await response.read()
    answer = orjson.loads(body)
    assert response.status == 200
    assert answer["choices"][0]["message"]["content"] == "w0 w1 w2 w3 w4 "
    row = gateway.row(response.headers["x-request-id"])
    assert row.response == body
    assert orjson.loads(row.request)["metadata"] == {"app": "t"}
    assert row.meta["status"] == "ok"
    assert row.meta["tags"] == {"app": "t"}
    assert row.meta["upstream_id"] == answer["id"]
    assert row.meta["finish_reason"] == "stop"
    assert row.meta["usage_source"] == "upstream"
    usage = answer["usage"]
    cost = 1500 * usage["prompt_tokens"] + 6000 * usage["completion_tokens"]
    assert row.meta["cost_nano_usd"] == cost
    assert response.headers["x-response-cost"] == f"0.{cost:09d}"
    assert float(response.headers["x-gateway-overhead-ms"]) < 1000


async def test_a_stream_gives_usage_only_to_those_who_ask(client, gateway):
    async with client.post(CHAT, json=chat("chat,tokens=4", stream=True)) as response:
        plain = await events(response)
    plain_id = response.headers["x-request-id"]
    assert plain[-1] == "[DONE]"
    assert all(event["choices"] for event in plain[:-1])
    asking = chat("chat,tokens=4", stream=True, stream_options={"include_usage": True})
    async with client.post(CHAT, json=asking) as response:
        told = await events(response)
    usage = told[-2]["usage"]
    row = gateway.row(response.headers["x-request-id"])
    assert row.meta["output_tokens"] == usage["completion_tokens"] == 4
    assert f"{usage['cost']:.9f}" == f"0.{row.meta['cost_nano_usd']:09d}"
    assert gateway.row(plain_id).meta["output_tokens"] == 4


@pytest.mark.parametrize("script", ["crlf", "slice=1", "comments", "done-twice"])
async def test_framing_does_not_change_a_stream(client, gateway, script):
    model = f"chat,tokens=6,{script}"
    async with client.post(CHAT, json=chat(model, stream=True)) as response:
        text = (await response.read()).decode().replace("\r\n", "\n")
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data")]
    assert data.count("[DONE]") == 1 and data[-1] == "[DONE]"
    words = [orjson.loads(item)["choices"][0]["delta"].get("content") for item in data[:-1]]
    assert "".join(word or "" for word in words) == "w0 w1 w2 w3 w4 w5 "
    assert gateway.row(response.headers["x-request-id"]).meta["status"] == "ok"


@pytest.mark.parametrize(
    ("script", "status", "code", "logged"),
    [
        ("status-500", 502, "upstream_500", "upstream_error"),
        ("status-429", 429, None, "upstream_error"),
        ("status-400", 400, None, "upstream_error"),
        ("status-401", 502, "upstream_401", "upstream_error"),
        ("not-json", 502, "upstream_broken", "upstream_error"),
        ("not-http", 502, "upstream_broken", "upstream_error"),
        ("reset", 502, "upstream_broken", "upstream_error"),
        ("refuse", 502, "upstream_broken", "upstream_error"),
        ("redirect", 502, "upstream_307", "upstream_error"),
        ("huge-headers", 502, "upstream_broken", "upstream_error"),
        ("cut-bytes=40", 502, "upstream_broken", "upstream_error"),
        ("slow-ms=3000", 504, "upstream_timeout", "timeout"),
    ],
)
async def test_upstream_failures_become_openai_errors(
    client, gateway, script, status, code, logged
):
    async with client.post(CHAT, json=chat(f"chat,{script}")) as response:
        body = await response.json()
    assert response.status == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert code is None or body["error"]["code"] == code
    row = gateway.row(response.headers["x-request-id"])
    assert row.meta["status"] == logged
    assert row.meta["http_status"] == status


async def test_an_unreachable_upstream_is_a_502(client, gateway):
    async with client.post(CHAT, json=chat("dead")) as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "upstream_broken"


@pytest.mark.parametrize("events_sent", range(9))
async def test_a_cut_stream_never_looks_like_success(client, gateway, events_sent):
    model = f"chat,tokens=6,cut-after={events_sent}"
    async with client.post(CHAT, json=chat(model, stream=True)) as response:
        seen = await events(response) if response.status == 200 else [await response.json()]
    assert "[DONE]" not in seen
    assert seen[-1]["error"]["type"] == "upstream_error"
    row = gateway.row(response.headers["x-request-id"])
    assert row.meta["status"] in ("upstream_cut", "upstream_error")
    assert row.meta["output_tokens"] is None or row.meta["usage_source"] == "estimated"


@pytest.mark.parametrize("script", ["no-done", "error-event=3", "stall-after=3", "not-json"])
async def test_a_stream_without_its_end_is_an_error(client, gateway, script):
    async with client.post(CHAT, json=chat(f"chat,tokens=6,{script}", stream=True)) as response:
        text = (await response.read()).decode()
    assert "[DONE]" not in text
    assert '"type":"upstream_error"' in text
    assert gateway.row(response.headers["x-request-id"]).meta["status"] != "ok"


async def test_usage_that_is_zero_stays_zero_and_none_is_estimated(client, gateway):
    async with client.post(CHAT, json=chat("chat,usage-zero")) as response:
        zero = gateway.row(response.headers["x-request-id"]).meta
    assert (zero["output_tokens"], zero["usage_source"]) == (0, "upstream")
    async with client.post(CHAT, json=chat("chat,no-usage,tokens=8")) as response:
        unary = gateway.row(response.headers["x-request-id"]).meta
    asking = chat("chat,no-usage,tokens=8", stream=True, stream_options={"include_usage": True})
    async with client.post(CHAT, json=asking) as response:
        streamed = await events(response)
    row = gateway.row(response.headers["x-request-id"]).meta
    assert unary["usage_source"] == row["usage_source"] == "estimated"
    assert unary["output_tokens"] == row["output_tokens"] == 6  # 24 bytes
    assert streamed[-2]["usage"]["completion_tokens"] == 6
    async with client.post(CHAT, json=chat("chat,usage-in-last-choice", stream=True)) as response:
        await response.read()
    assert gateway.row(response.headers["x-request-id"]).meta["usage_source"] == "upstream"


async def test_cached_and_reasoning_tokens_are_priced(client, gateway):
    async with client.post(CHAT, json=chat("chat,cached=1,reasoning=2,tokens=8")) as response:
        usage = (await response.json())["usage"]
    row = gateway.row(response.headers["x-request-id"]).meta
    assert (row["cached_tokens"], row["reasoning_tokens"]) == (1, 2)
    fresh = usage["prompt_tokens"] - 1
    assert row["cost_nano_usd"] == 1500 * fresh + 500 + 6000 * usage["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_upstream(client, gateway, upstream, stream):
    model = "chat,tokens=400,paced-ms=20" if stream else "chat,slow-ms=800"
    before = upstream.counts().get("aborted", 0)
    response = None
    task = asyncio.create_task(client.post(CHAT, json=chat(model, stream=stream)).__aenter__())
    if stream:
        response = await task
        while b"w3" not in await response.content.readany():
            pass
        response.close()
    else:
        await asyncio.sleep(0.3)
        task.cancel()
    started = time.monotonic()
    assert await eventually(lambda: upstream.counts().get("aborted", 0) > before, 2)
    assert time.monotonic() - started < 1
    rows = await eventually(
        lambda: [
            entry.meta
            for entry in gateway.finals().values()
            if entry.meta["status"] == "client_disconnected" and entry.meta["model"] == model
        ]
    )
    assert len(rows) == 1
    if stream:
        assert rows[0]["usage_source"] == "estimated" and rows[0]["output_tokens"] > 0


async def test_a_drained_upstream_is_read_to_its_end(client, gateway):
    response = await client.post(CHAT, json=chat("drained", stream=True))
    await response.content.readany()
    response.close()
    rows = await eventually(
        lambda: [e.meta for e in gateway.finals().values() if e.meta["model"] == "drained"]
    )
    assert rows[0]["status"] == "client_disconnected"
    assert (rows[0]["output_tokens"], rows[0]["usage_source"]) == (20, "upstream")


async def test_many_disconnects_leak_no_connection(client, gateway):
    async def leave(index: int) -> None:
        model = "chat,tokens=50,paced-ms=10"
        response = await client.post(CHAT, json=chat(model, stream=bool(index % 2)))
        response.close()

    for _ in range(10):
        await asyncio.gather(*(leave(index) for index in range(40)), return_exceptions=True)
    results = await asyncio.gather(*(_status(client, "chat") for _ in range(40)))
    assert results == [200] * 40


async def _status(client: aiohttp.ClientSession, model: str) -> int:
    async with client.post(CHAT, json=chat(model)) as response:
        await response.read()
        return response.status


async def test_concurrent_answers_never_cross(client, gateway):
    async def one(index: int) -> None:
        nonce = f"nonce-{index:04x}"
        body = chat("chat,tokens=6", stream=bool(index % 2), metadata={"n": nonce})
        body["messages"][0]["content"] = nonce
        async with client.post(CHAT, json=body) as response:
            text = (await response.read()).decode()
        assert f"{nonce}.0" in text
        gateway_rows[response.headers["x-request-id"]] = nonce

    gateway_rows: dict[str, str] = {}
    await asyncio.gather(*(one(index) for index in range(200)))
    finals = gateway.finals()
    for request_id, nonce in gateway_rows.items():
        entry = finals[request_id]
        assert nonce.encode() in entry.response and entry.meta["tags"]["n"] == nonce
        assert entry.response.count(b"nonce-") == entry.response.count(nonce.encode())


async def test_a_vllm_upstream_gets_our_id_a_salt_and_the_tenant(client, gateway, upstream):
    upstream.reset()
    async with client.post(CHAT, json=chat("engine", max_tokens=500, episode_id="e")) as response:
        await response.read()
    call = upstream.calls()[-1]
    assert call["body"]["request_id"] == response.headers["x-request-id"]
    assert len(call["body"]["cache_salt"]) == 32
    assert call["body"]["max_tokens"] == 50
    assert call["body"]["model"] == "chat"
    assert "episode_id" not in call["body"]
    headers = dict(call["headers"])
    assert headers["x-llmops-tenant"] == "default"
    assert "authorization" not in headers


async def test_the_official_client_works(gateway):
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key) as openai:
        answer = await openai.chat.completions.create(
            model="chat,tokens=3", messages=[{"role": "user", "content": "x"}]
        )
        assert answer.choices[0].message.content == "w0 w1 w2 "
        stream = await openai.chat.completions.create(
            model="chat,tokens=3",
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
        text = await openai.completions.create(model="chat", prompt="x")
        assert text.choices[0].text
        vectors = await openai.embeddings.create(model="embed", input=["a", "b"])
        assert len(vectors.data) == 2
        models = await openai.models.list()
        assert "chat" in {model.id for model in models.data}
        tools = await openai.chat.completions.create(
            model="tool-call",
            messages=[{"role": "user", "content": "x"}],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )
        assert tools.choices[0].message.tool_calls


async def test_long_streams_go_to_a_part_file_and_stay_exact(client, gateway):
    model = "chat,big-bytes=600000,tokens=600"
    async with client.post(CHAT, json=chat(model, stream=True)) as response:
        received = await response.read()
    row = gateway.row(response.headers["x-request-id"])
    part = gateway.settings.spool_dir / "parts" / row.meta["response_part"]
    logged = part.read_bytes()
    sent = [e for e in received.split(b"\n\n") if e and e != b"data: [DONE]"]
    kept = [e for e in logged.split(b"\n\n") if e and b'"choices":[]' not in e]
    assert [e for e in kept if e != b"data: [DONE]"] == sent


async def test_a_key_may_switch_bodies_off_or_redact_them(gateway, upstream):
    for bodies in ("off", "redact"):
        token, _ = gateway.keys.generate(actor="test", bodies=bodies)
        await asyncio.sleep(0.6)
        headers = {"authorization": f"Bearer {token}"}
        body = chat("echo")
        body["messages"][0]["content"] = "write to jo.public@example.org now"
        async with (
            aiohttp.ClientSession(gateway.url, headers=headers) as session,
            session.post(CHAT, json={**body, "stream": True}) as response,
        ):
            assert b"example.org" in await response.read()
        row = gateway.row(response.headers["x-request-id"])
        assert b"example.org" not in row.request + row.response
        assert bool(row.request) is (bodies == "redact")
        assert row.meta["output_tokens"] > 0


async def test_a_client_that_leaves_while_a_large_body_is_parsed_calls_nobody(own_limits, upstream):
    gateway = own_limits
    body = chat("chat,tokens=60,paced-ms=50", stream=True)
    body["messages"] = [{"role": "user", "content": "x" * 900} for _ in range(1000)]
    data = orjson.dumps(body)
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    for pause in (0.0, 0.005, 0.02):
        async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
            task = asyncio.create_task(session.post(CHAT, data=data).__aenter__())
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(1.0)
    assert all(call["aborted"] for call in upstream.calls() if not call["finished"])
    assert not [call for call in upstream.calls() if call["finished"] and call["events"] > 50]


@pytest.fixture
def own_limits(upstream, tmp_path):
    upstream.reset()
    gateway = GatewayProcess(tmp_path / "home", configuration(upstream.url)).start()
    yield gateway
    gateway.stop()


def test_a_finished_request_does_not_blind_the_next_one_on_its_connection():
    connection, told = Connection(), []

    def first() -> None:
        told.append("first")

    def second() -> None:
        told.append("second")

    connection.on_close = first
    connection.on_close = second  # the next request came while the first was winding up
    connection.unwatch(first)
    connection.lose()
    assert told == ["second"]
