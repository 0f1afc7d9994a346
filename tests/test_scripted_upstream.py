"""The scripted upstream does what its words say, as an independent client sees it."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from tests.scripted_answers import UnknownScript, embedding, parse_script
from tests.scripted_upstream import ScriptedUpstream, ScriptedUpstreamProcess

MESSAGES = [{"role": "user", "content": "hello nonce-12ab there"}]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout, max_field_size=65536) as session:
        yield session


async def post(
    client: aiohttp.ClientSession, url: str, model: str, *, stream: bool = False
) -> tuple[int, bytes]:
    body = {
        "model": model,
        "messages": MESSAGES,
        "stream": stream,
        "stream_options": {"include_usage": True},
    }
    async with client.post(f"{url}/chat/completions", json=body) as answer:
        return answer.status, await answer.read()


async def events(client: aiohttp.ClientSession, url: str, model: str) -> list[bytes]:
    _, raw = await post(client, url, model, stream=True)
    lines = raw.replace(b"\r\n", b"\n").split(b"\n")
    return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]


def test_words_are_read_and_unknown_ones_refused() -> None:
    script = parse_script("chat,tokens=64,paced-ms=20,status-429")
    assert script.numbers == {"tokens": 64, "paced-ms": 20, "status": 429}
    for wrong in ("", "gpt-4", "chat,", "tokens", "echo=3", "chat tokens=3"):
        with pytest.raises(UnknownScript):
            parse_script(wrong)


async def test_a_unary_answer_has_nonce_usage_and_the_callers_id(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    body = {"model": "chat,tokens=2,cached=1", "messages": MESSAGES, "request_id": "abc", "n": 2}
    async with client.post(f"{upstream.url}/chat/completions", json=body) as answer:
        got = await answer.json()
    assert got["id"] == "chatcmpl-abc"
    assert [choice["message"]["content"] for choice in got["choices"]] == [
        "nonce-12ab.0 nonce-12ab.1 "
    ] * 2
    assert got["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    call = upstream.calls[0]
    assert (call.body, call.finished, call.aborted, call.status) == (body, True, False, 200)


async def test_a_stream_has_its_events_usage_and_end(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    got = await events(client, upstream.url, "chat,tokens=3,comments,crlf,slice=7")
    assert got[-1] == b"[DONE]"
    parsed = [orjson.loads(event) for event in got[:-1]]
    content = [chunk["choices"][0]["delta"].get("content") for chunk in parsed[:-1]]
    assert content == ["", "nonce-12ab.0 ", "nonce-12ab.1 ", "nonce-12ab.2 ", None]
    assert parsed[-1]["usage"]["completion_tokens"] == 3
    assert upstream.calls[0].events == 7


@pytest.mark.parametrize(
    ("model", "count", "last"),
    [
        ("chat,no-done", 11, b"usage"),
        ("chat,done-twice", 13, b"[DONE]"),
        ("chat,no-usage", 11, b"[DONE]"),
        ("chat,usage-in-last-choice", 11, b"[DONE]"),
        ("chat,error-event=2", 3, b"scripted failure in mid stream"),
        ("echo", 7, b"[DONE]"),
        ("fixed=4", 8, b"[DONE]"),
        ("chat,until-close", 12, b"[DONE]"),
    ],
)
async def test_streams_end_as_told(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession, model: str, count: int, last: bytes
) -> None:
    got = await events(client, upstream.url, model)
    assert len(got) == count
    assert last in got[-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("refuse", aiohttp.ServerDisconnectedError),
        ("reset", aiohttp.ClientOSError),
        ("not-http", aiohttp.ClientResponseError),
        ("cut-bytes=20", aiohttp.ClientPayloadError),
    ],
)
async def test_broken_connections(
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    *,
    model: str,
    stream: bool,
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        await post(client, upstream.url, model, stream=stream)
    assert not upstream.calls[0].aborted


async def test_a_cut_stream_ends_before_its_body_does(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(client, upstream.url, "cut-after=2", stream=True)
    assert upstream.calls[0].events == 2


@pytest.mark.parametrize(
    ("model", "status"), [("status-429", 429), ("status=500", 500), ("x", 404)]
)
async def test_errors_have_openais_shape(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession, model: str, status: int
) -> None:
    got, raw = await post(client, upstream.url, model)
    assert got == status
    assert set(orjson.loads(raw)["error"]) == {"message", "type", "param", "code"}


async def test_a_peer_that_goes_away_is_noted(upstream: ScriptedUpstream) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    body = orjson.dumps({"model": "stall-after=3", "stream": True, "messages": MESSAGES})
    head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    while upstream.counts["/v1/chat/completions"] == 0 or upstream.calls[0].events < 3:
        await asyncio.wait_for(reader.read(65536), 5)
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while not upstream.calls[0].aborted:
            await asyncio.sleep(0.01)
    assert not upstream.calls[0].finished
    assert upstream.counts["aborted"] == 1


async def test_big_streams_wait_for_a_slow_reader(upstream: ScriptedUpstream) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port, limit=1024)
    model = "big-bytes=50000000,tokens=1000"
    body = orjson.dumps({"model": model, "stream": True, "messages": MESSAGES})
    head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.wait_for(reader.read(10), 5)
    await asyncio.sleep(0.3)
    assert upstream.calls[0].sent < 20_000_000
    writer.close()
    await writer.wait_closed()


async def test_tool_calls_in_pieces(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    got = await events(client, upstream.url, "tool-call")
    calls = [
        chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"]
        for chunk in map(orjson.loads, got[:-2])
        if "tool_calls" in chunk["choices"][0]["delta"]
    ]
    assert orjson.loads("".join(calls)) == {"nonce": "nonce-12ab", "number": 1}


async def test_embeddings_depend_on_the_text(
    upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    body = {"model": "embed", "input": ["a", "b", "a"], "dimensions": 5}
    async with client.post(f"{upstream.url}/embeddings", json=body) as answer:
        got = await answer.json()
    vectors = [item["embedding"] for item in got["data"]]
    assert vectors == [embedding("a", 5), embedding("b", 5), embedding("a", 5)]
    assert vectors[0] != vectors[1]


def test_as_a_process() -> None:
    with ScriptedUpstreamProcess() as upstream:
        assert upstream.calls() == []
        assert upstream.counts()["connections"] == 2
        upstream.reset()
        assert "connections" in upstream.counts()
