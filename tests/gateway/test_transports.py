"""The two transports against one upstream: whatever it does, both make the same of it."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.aiohttp_transport import AiohttpTransport
from gateway.configuration import Timeouts
from gateway.errors import GatewayError, UpstreamBroken, UpstreamTimeout
from gateway.http1_transport import Http1Transport
from gateway.upstream import Call, Transport
from tests.scripted_upstream import ScriptedUpstream

CONNECTIONS = 3
QUICK = Timeouts(connect=1, first_byte=0.4, idle=0.4, total=5)
SCRIPTS = [
    "chat", "chat,tokens=50", "chat,crlf", "chat,slice=1", "chat,slice=7,tokens=20",
    "chat,comments", "chat,until-close", "chat,big-bytes=300000", "chat,paced-ms=5",
    "chat,status=400", "chat,status=429", "chat,status=500", "chat,status=503", "chat,redirect",
    "chat,not-json", "chat,not-http", "chat,refuse", "chat,reset", "chat,huge-headers",
    "chat,cut-bytes=0", "chat,cut-bytes=1", "chat,cut-bytes=100", "chat,cut-after=0",
    "chat,cut-after=2", "chat,no-done", "chat,done-twice", "chat,error-event=2",
    "chat,stall-after=0", "chat,stall-after=2", "chat,slow-ms=900", "chat,no-usage",
]  # fmt: skip


def call(upstream: ScriptedUpstream, script: str, *, stream: bool = False) -> Call:
    body = {"model": script, "stream": stream, "messages": [{"role": "user", "content": "x"}]}
    headers = {"content-type": "application/json"}
    url = f"{upstream.url}/chat/completions"
    return Call(url, headers, orjson.dumps(body), QUICK, stream=stream, connections=CONNECTIONS)


async def outcome(transport: Transport, request: Call) -> Any:
    """Status and body, or the kind of failure; answers' running numbers are taken out."""
    received = b""
    try:
        answer = await transport.send(request)
        try:
            if not request.stream:
                received = await answer.read()
            else:
                while piece := await answer.next():
                    received += piece
        finally:
            answer.close()
    except GatewayError as error:
        return type(error).__name__, _without_numbers(received)
    return answer.status, _without_numbers(received)


def _without_numbers(received: bytes) -> bytes:
    parts = received.split(b'"chatcmpl-')
    return b"".join([parts[0], *(part.partition(b'"')[2] for part in parts[1:])])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
async def test_both_transports_agree(script, stream):
    async with ScriptedUpstream() as upstream:
        reference = AiohttpTransport(CONNECTIONS)
        lean = Http1Transport(secure=reference)
        try:
            expected = await outcome(reference, call(upstream, script, stream=stream))
            found = await outcome(lean, call(upstream, script, stream=stream))
            assert found == expected
            again = await outcome(lean, call(upstream, "chat"))
            assert again[0] == 200
        finally:
            await lean.close()


@pytest.fixture
async def lean():
    transport = Http1Transport(secure=AiohttpTransport(CONNECTIONS))
    yield transport
    await transport.close()


async def test_cancelled_calls_leave_no_connection_behind(lean):
    async with ScriptedUpstream() as upstream:
        for _ in range(30):
            slow = [
                asyncio.create_task(outcome(lean, call(upstream, "chat,slow-ms=300")))
                for _ in range(12)
            ]
            await asyncio.sleep(0.01)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        found = await asyncio.gather(*(outcome(lean, call(upstream, "chat")) for _ in range(20)))
        assert [status for status, _ in found] == [200] * 20
        assert len(upstream.connections) <= 3


async def test_a_used_connection_is_used_again_and_a_spoilt_one_is_not(lean):
    async with ScriptedUpstream() as upstream:
        for script in ("chat", "chat", "chat,until-close", "chat"):
            assert (await outcome(lean, call(upstream, script)))[0] == 200
        connections = [seen.connection for seen in upstream.calls]
        assert connections[0] == connections[1] == connections[2] != connections[3]


async def test_an_answer_nobody_reads_pauses_the_upstream(lean):
    async with ScriptedUpstream() as upstream:
        answer = await lean.send(call(upstream, "chat,big-bytes=60000000,tokens=600", stream=True))
        await asyncio.sleep(1.0)
        written = upstream.calls[0].sent
        assert written < 30_000_000
        await asyncio.sleep(0.6)  # longer than an idle upstream may take
        assert await answer.next()
        answer.close()


async def test_an_unreachable_upstream_and_one_that_never_answers(lean):
    upstream = ScriptedUpstream()
    async with upstream:
        with pytest.raises(UpstreamTimeout):
            await lean.send(call(upstream, "chat,slow-ms=2000"))
    with pytest.raises(UpstreamBroken):
        await lean.send(call(upstream, "chat"))


@pytest.mark.parametrize("kind", ["aiohttp", "lean"])
async def test_waiting_for_a_connection_ends(kind, lean):
    transport = lean if kind == "lean" else AiohttpTransport(CONNECTIONS)
    brief = Timeouts(connect=1, first_byte=5, idle=5, total=0.5)
    patient = Timeouts(connect=1, first_byte=5, idle=5, total=5)
    async with ScriptedUpstream() as upstream:
        slow = replace(call(upstream, "chat,slow-ms=1500"), timeouts=patient)
        busy = [asyncio.create_task(outcome(transport, slow)) for _ in range(CONNECTIONS)]
        await asyncio.sleep(0.1)
        with pytest.raises(UpstreamTimeout):
            await transport.send(replace(call(upstream, "chat"), timeouts=brief))
        assert [status for status, _ in await asyncio.gather(*busy)] == [200] * CONNECTIONS
    await transport.close()


async def test_get_reads_a_small_answer(lean):
    async with ScriptedUpstream() as upstream:
        status, body = await lean.get(f"{upstream.url}/models", {})
        assert status == 200 and orjson.loads(body)["object"] == "list"
