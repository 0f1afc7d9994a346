"""The process around LiteLLM, against a scripted provider on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.embedding_stack import LiteLLMServerProcess
from tests.scripted_upstream import ScriptedUpstreamProcess

SCRIPTS = [
    *("chat,tokens=3", "chat,no-usage", "chat,paced-ms=200,tokens=50", "chat,slow-ms=5000"),
    *(f"chat,status={status}" for status in (400, 401, 404, 429, 500, 503)),
    *("chat,refuse", "chat,not-json", "chat,cut-after=3", "chat,until-close,cut-after=3"),
    *("chat,cut-bytes=40", "chat,error-event=2", "tool-call", "embed"),
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass
class Parts:
    provider: ScriptedUpstreamProcess
    server: LiteLLMServerProcess


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with ScriptedUpstreamProcess() as provider:
        models = {
            script: {
                "model": f"openai/{script}",
                "api_base": provider.url,
                "api_key_env": "PROVIDER_KEY",
            }
            for script in SCRIPTS
        }
        server = LiteLLMServerProcess(tmp_path_factory.mktemp("litellm"), models)
        server.environment["PROVIDER_KEY"] = "sk-provider"
        with server:
            yield Parts(provider, server)


@pytest.fixture
async def session(parts: Parts) -> AsyncIterator[aiohttp.ClientSession]:
    parts.provider.reset()
    async with aiohttp.ClientSession(parts.server.url) as session:
        yield session


async def post(
    session: aiohttp.ClientSession, body: Any, path: str = "chat/completions"
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with session.post(f"/v1/{path}", data=data) as answer:
        return answer.status, orjson.loads(await answer.read())


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


async def events(session: aiohttp.ClientSession, model: str, **more: Any) -> list[Any]:
    """The payloads of a stream; `[DONE]` as text."""
    async with session.post(
        "/v1/chat/completions", json=chat(model, stream=True, **more)
    ) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        text = (await answer.read()).decode()
    payloads = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else orjson.loads(line) for line in payloads]


async def test_a_chat_is_answered_with_the_providers_usage(
    session: aiohttp.ClientSession, parts: Parts
):
    status, body = await post(session, chat("chat,tokens=3", temperature=0.5, vendor_field=7))
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "w0 w1 w2 "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == 1 and body["usage"]["completion_tokens"] == 3
    [call] = parts.provider.calls()
    assert ["authorization", "Bearer sk-provider"] in [
        [name.lower(), value] for name, value in call["headers"]
    ]
    assert call["body"]["temperature"] == 0.5 and call["body"]["vendor_field"] == 7


async def test_no_usage_is_not_made_up(session: aiohttp.ClientSession):
    _, body = await post(session, chat("chat,no-usage"))
    assert "usage" not in body
    payloads = await events(session, "chat,no-usage", stream_options={"include_usage": True})
    assert payloads[-1] == "[DONE]"
    assert not any("usage" in payload for payload in payloads[:-1])


async def test_a_stream_ends_with_usage_and_done(session: aiohttp.ClientSession):
    payloads = await events(session, "chat,tokens=3", stream_options={"include_usage": True})
    assert payloads[-1] == "[DONE]"
    assert payloads[-2]["choices"] == [] and payloads[-2]["usage"]["completion_tokens"] == 3
    deltas = [chunk["choices"][0]["delta"] for chunk in payloads[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == "w0 w1 w2 "
    assert payloads[-3]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("chat,cut-after=3", "upstream_cut"),
        ("chat,until-close,cut-after=3", "upstream_cut"),
        ("chat,cut-bytes=40", "upstream_cut"),
        ("chat,not-json", "upstream_cut"),
        ("chat,error-event=2", None),
    ],
)
async def test_a_cut_stream_never_looks_complete(
    session: aiohttp.ClientSession, script: str, code: str | None
):
    payloads = await events(session, script)
    assert "[DONE]" not in payloads
    assert payloads[-1]["error"]["code"] == code
    finishes = [choice for chunk in payloads[:-1] for choice in chunk["choices"]]
    assert not any(choice.get("finish_reason") for choice in finishes)


async def test_tools_pass_both_ways(session: aiohttp.ClientSession):
    _, body = await post(session, chat("tool-call", tools=[TOOL]))
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    payloads = await events(session, "tool-call", tools=[TOOL])
    assert payloads[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_embeddings_and_text_completions(session: aiohttp.ClientSession):
    status, body = await post(session, {"model": "embed", "input": ["a", "b c"]}, "embeddings")
    assert status == 200, body
    assert [len(item["embedding"]) for item in body["data"]] == [384, 384]
    assert body["usage"]["prompt_tokens"] == 3
    given = {"model": "chat,tokens=3", "prompt": "hello"}
    status, body = await post(session, given, "completions")
    assert status == 200 and body["choices"][0]["text"] == "w0 w1 w2 "
    status, body = await post(session, {**given, "stream": True}, "completions")
    assert status == 400 and body["error"]["param"] == "stream"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("chat,status=400", 400),
        ("chat,status=401", 401),
        ("chat,status=404", 404),
        ("chat,status=429", 429),
        ("chat,status=500", 500),
        ("chat,status=503", 503),
        ("chat,refuse", 502),
        ("chat,not-json", 502),
    ],
)
async def test_the_providers_status_is_kept(
    session: aiohttp.ClientSession, parts: Parts, script: str, expected: int
):
    status, body = await post(session, chat(script))
    assert status == expected
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "litellm" not in body["error"]["message"].lower()
    assert len(parts.provider.calls()) == 1
    if script != "chat,not-json":
        status, _ = await post(session, chat(script, stream=True))
        assert status == expected


@pytest.mark.parametrize(
    "field",
    ["api_base", "base_url", "api_key", "mock_response", "fallbacks", "custom_llm_provider"],
)
async def test_no_field_reaches_litellms_own_options(
    session: aiohttp.ClientSession, parts: Parts, field: str
):
    value = "http://127.0.0.1:9/v1" if "base" in field else "other"
    status, body = await post(session, chat("chat,tokens=3", **{field: value}))
    assert status == 200 and body["choices"][0]["message"]["content"] == "w0 w1 w2 "
    assert parts.provider.calls()[-1]["body"][field] == value


async def test_bad_requests(session: aiohttp.ClientSession):
    for given, expected in [
        (chat("gpt-4"), 404),
        ({"messages": []}, 400),
        ({"model": "chat,tokens=3"}, 400),
        (b"{", 400),
    ]:
        status, body = await post(session, given)
        assert status == expected and set(body["error"]) == {"message", "type", "param", "code"}


async def test_a_client_that_leaves_ends_the_providers_call(
    session: aiohttp.ClientSession, parts: Parts
):
    async def leave(script: str, *, stream: bool) -> None:
        given = chat(script, stream=stream)
        async with asyncio.timeout(0.6):
            async with session.post("/v1/chat/completions", json=given) as answer:
                await answer.read()

    leaving = [leave("chat,paced-ms=200,tokens=50", stream=True) for _ in range(10)]
    leaving += [leave("chat,slow-ms=5000", stream=False) for _ in range(10)]
    ends = await asyncio.gather(*leaving, return_exceptions=True)
    assert all(isinstance(end, TimeoutError) for end in ends)
    for _ in range(100):
        if parts.provider.counts().get("aborted") == 20:
            break
        await asyncio.sleep(0.05)
    assert parts.provider.counts()["aborted"] == 20
    status, _ = await post(session, chat("chat,tokens=3"))
    assert status == 200


async def test_models_and_health(session: aiohttp.ClientSession):
    async with session.get("/v1/models") as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == sorted(SCRIPTS)
    for path in ("/health/live", "/health/ready"):
        async with session.get(path) as answer:
            assert answer.status == 200


def test_a_key_that_is_not_set_is_named(tmp_path: Path):
    models = {"m": {"model": "openai/m", "api_key_env": "NO_SUCH_KEY"}}
    server = LiteLLMServerProcess(tmp_path, models)
    server.launch()
    assert server.ended(60) == 2
    assert "litellm.models.m.api_key_env: NO_SUCH_KEY is not set" in server.log_path.read_text()
