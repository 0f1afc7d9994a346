"""What a client may send wrong: always an answer in OpenAI's shape, never a 5xx, logged once."""

import asyncio
import socket
import time

import aiohttp
import orjson
import pytest

from tests.gateway_process import GatewayProcess, configuration

CHAT = "/v1/chat/completions"
GOOD = b'{"model":"chat","messages":[{"role":"user","content":"hi"}]}'


def raw(gateway: GatewayProcess, data: bytes, *, seconds: float = 5.0) -> bytes:
    """Send bytes as they are; everything that comes back until the connection is quiet."""
    address = ("127.0.0.1", gateway.given["server"]["port"])
    with socket.create_connection(address, timeout=seconds) as client:
        client.sendall(data)
        client.settimeout(1.0)
        received = b""
        try:
            while chunk := client.recv(65536):
                received += chunk
        except TimeoutError:
            pass
        return received


def request(gateway: GatewayProcess, body: bytes, *extra: str, path: str = CHAT) -> bytes:
    head = [
        f"POST {path} HTTP/1.1",
        "Host: test",
        f"Authorization: Bearer {gateway.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *extra,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> dict:
    error: dict = orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[1]", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"model":"chat","messages":"\x00"}', 400, None),
        (b'{"model":"chat","messages":[{"role":"user","content":"\\ud800"}]}', 400, None),
        (b'{"model":NaN}', 400, None),
        (b"[" * 50_000, 400, None),
        (b'{"a":' * 100 + b"1" + b"}" * 100, 400, None),
        (b"{}", 400, "model"),
        (b'{"model":"chat"}', 400, "messages"),
        (b'{"model":5,"messages":[]}', 400, "model"),
        (b'{"model":"chat","messages":[]}', 400, "messages"),
        (b'{"model":"chat","messages":[5]}', 400, "messages"),
        (b'{"model":"chat","messages":[{"role":"user"}],"n":99}', 400, "n"),
        (b'{"model":"chat","messages":[{"role":"user"}],"n":true}', 400, "n"),
        (b'{"model":"chat","messages":[{"role":"user"}],"temperature":"x"}', 400, "temperature"),
        (b'{"model":"chat","messages":[{"role":"user"}],"api_base":"http://x"}', 400, "api_base"),
        (b'{"model":"chat","messages":[{"role":"user"}],"base_url":1}', 400, "base_url"),
        (b'{"model":"c","messages":[{"role":"user"}],"chat_template":"x"}', 400, "chat_template"),
        (
            b'{"model":"c","messages":[{"role":"user","content":[{"type":"image_url",'
            b'"image_url":{"url":"http://169.254.169.254/"}}]}]}',
            400,
            "messages",
        ),
        (b'{"model":"never-heard","messages":[{"role":"user","content":"x"}]}', 404, None),
    ],
)
def test_a_wrong_body_is_refused_and_logged_once(gateway, body, status, param):
    before = set(gateway.finals())
    answer = raw(gateway, request(gateway, body, "Connection: close"))
    assert status_of(answer) == status
    error = error_of(answer)
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert len(set(gateway.finals()) - before) == 1


def test_an_escaped_nul_is_valid_and_round_trips(gateway):
    body = b'{"model":"echo","messages":[{"role":"user","content":"a\\u0000b"}]}'
    answer = raw(gateway, request(gateway, body, "Connection: close"))
    assert status_of(answer) == 200 and b"a\\u0000b" in answer


def test_a_body_over_the_limit_is_a_413(gateway):
    big = b'{"model":"chat","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 70_000)
    answer = raw(gateway, request(gateway, big, "Connection: close"))
    assert status_of(answer) == 413
    chunked = b"11170\r\n" + b"x" * 0x11170 + b"\r\n0\r\n\r\n"
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {gateway.key}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    assert status_of(raw(gateway, head.encode() + chunked)) == 413


@pytest.fixture(scope="module")
def answers_401() -> set[bytes]:
    return set()


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer x", "Basic sk-a", "Bearer sk-" + "z" * 43, "Bearer sk-" + "é" * 40,
     "Bearer sk-' OR 1=1 --", "Bearer sk-" + "a" * 8000],
)  # fmt: skip
async def test_wrong_keys_get_one_constant_answer(gateway, answers_401, authorization):
    headers = {"authorization": authorization} if authorization else {}
    async with (
        aiohttp.ClientSession(gateway.url) as session,
        session.post(CHAT, data=GOOD, headers=headers) as response,
    ):
        body = await response.read()
    assert response.status == 401
    assert orjson.loads(body)["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    answers_401.add(body)
    assert len(answers_401) == 1


async def test_blocked_and_expired_keys_stop_within_a_second(gateway):
    token, _ = gateway.keys.generate(actor="test")
    soon, _ = gateway.keys.generate(actor="test", duration="1s")
    async with aiohttp.ClientSession(gateway.url) as session:

        async def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            async with session.post(CHAT, data=GOOD, headers=headers) as response:
                return response.status

        await asyncio.sleep(0.5)
        assert await status(token) == 200
        gateway.keys.block(token, actor="test")
        started = time.monotonic()
        while await status(token) != 401:
            assert time.monotonic() - started < 1
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.8)
        assert await status(soon) == 401


async def test_a_key_sees_and_uses_its_own_models_only(gateway):
    token, _ = gateway.keys.generate(actor="test", models=["chat", "engine"])
    await asyncio.sleep(0.6)
    headers = {"authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        async with session.get("/v1/models") as response:
            names = {model["id"] for model in (await response.json())["data"]}
        assert names == {"engine", "chat"}
        body = orjson.dumps({"model": "echo", "messages": [{"role": "user", "content": "x"}]})
        async with session.post(CHAT, data=body) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ("Authorization: Bearer other", 400),
        ("Host: other", 400),
        ("Content-Length: 3", 400),
        ("Transfer-Encoding: chunked", 400),
        ("Content-Encoding: gzip", 400),
        (" folded: x", 400),
        ("X-Long: " + "x" * 20_000, 431),
        ("\r\n".join(f"X-{n}: y" for n in range(80)), 431),
    ],
)
def test_ambiguous_heads_are_refused_and_the_connection_closed(gateway, extra, status):
    smuggled = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = raw(gateway, request(gateway, GOOD, extra) + smuggled)
    assert status_of(answer) == status
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "path", ["/v1/%2e%2e/admin", "//v1/models", "/v1/./models", "http://x/v1/models"]
)
def test_paths_that_are_not_plain_are_refused(gateway, path):
    answer = raw(gateway, request(gateway, GOOD, "Connection: close", path=path))
    assert status_of(answer) == 400


def test_a_missing_host_is_refused(gateway):
    assert status_of(raw(gateway, b"GET /health/live HTTP/1.1\r\n\r\n")) == 400


def test_pipelined_requests_are_answered_in_order(gateway):
    two = request(gateway, GOOD) + request(gateway, GOOD, "Connection: close")
    answer = raw(gateway, two)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("path", ["/v1/files", "/v1/images/generations", "/v1/responses"])
async def test_endpoints_that_are_not_offered_say_so(client, path):
    async with client.post(path, json={}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "endpoint_not_supported"


@pytest.mark.parametrize("path", ["/v1/nothing", "/metrics", "/admin", "/key/generate"])
async def test_unknown_paths_want_a_key_first(gateway, path):
    async with aiohttp.ClientSession(gateway.url) as session, session.get(path) as response:
        assert response.status == 401


@pytest.mark.parametrize("path", ["/v1/models", CHAT, "/health/live"])
def test_head_gets_no_body(gateway, path):
    head = f"HEAD {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode()
    after = b"GET /health/live HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    answer = raw(gateway, head + after)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.split(b"\r\n\r\n", 1)[1].startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pause", [0, 0.2])
def test_an_upgrade_is_ignored_and_its_body_stays_a_body(gateway, pause):
    inner = request(gateway, GOOD)
    extra = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    head, _, body = request(gateway, inner, *extra).partition(b"\r\n\r\n")
    address = ("127.0.0.1", gateway.given["server"]["port"])
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(head + b"\r\n\r\n")
        time.sleep(pause)
        client.sendall(body)
        client.settimeout(1.0)
        answer = client.recv(65536)
    assert answer.count(b"HTTP/1.1 ") == 1 and status_of(answer) == 400  # the body is not JSON
    good = raw(gateway, request(gateway, GOOD, *extra))
    assert status_of(good) == 200


async def test_the_cap_on_output_tokens_holds_for_every_field(client, upstream):
    for path, body in (
        ("/v1/completions", {"model": "engine", "prompt": "x"}),
        (CHAT, {"model": "engine", "messages": [{"role": "user", "content": "x"}]}),
    ):
        limits = {"max_tokens": 100_000, "max_completion_tokens": 1}
        async with client.post(path, json={**body, **limits}) as response:
            assert response.status == 200
        sent = upstream.calls()[-1]["body"]
        assert sent["max_tokens"] <= 50 and sent["max_completion_tokens"] == 1
        async with client.post(path, json={**body, "max_completion_tokens": "x"}) as response:
            assert response.status == 400


async def test_a_prompt_that_is_not_there_is_not_found(client):
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "prompt_id": "p"}
    async with client.post(CHAT, json=body) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "prompt_not_found"


async def test_refusals_do_not_grow_a_full_spool(upstream, tmp_path):
    given = configuration(upstream.url, log={"spool_bytes": 65536, "segment_bytes": 4096})
    gateway = GatewayProcess(tmp_path / "home", given).start()
    try:
        async with aiohttp.ClientSession(gateway.url) as session:
            for _ in range(300):
                async with session.post(
                    CHAT, data=GOOD, headers={"authorization": "x"}
                ) as response:
                    assert response.status in (401, 503)
        held = sum(path.stat().st_size for path in gateway.settings.spool_dir.glob("*.seg"))
        assert held < 2 * 65536
    finally:
        gateway.stop()
