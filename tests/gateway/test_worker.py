"""A worker's life: reload, drain, full spool, slow clients."""

import asyncio
import signal
import socket
import time

import aiohttp
import pytest

from tests.gateway.test_request_path import CHAT, chat, events
from tests.gateway_process import GatewayProcess, configuration


@pytest.fixture
def own(upstream, tmp_path):
    """A worker that a test may ruin; made with the sections that it is called with."""
    started = []

    def start(**sections) -> GatewayProcess:
        process = GatewayProcess(tmp_path / "home", configuration(upstream.url, **sections))
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()


def session(gateway: GatewayProcess) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(gateway.url, headers={"authorization": f"Bearer {gateway.key}"})


async def test_a_changed_file_is_in_force_without_a_restart(own, upstream):
    gateway = own()
    async with session(gateway) as client:
        async with client.post(CHAT, json=chat("chat")) as response:
            before = response.headers["x-response-cost"]
        priced = {"*": {"upstream": "up", "price": {"input": 15, "output": 60}}}
        gateway.write({**gateway.given, "models": priced})
        await asyncio.sleep(1.2)
        async with client.post(CHAT, json=chat("chat")) as response:
            after = response.headers["x-response-cost"]
        gateway.write({**gateway.given, "modles": {}})
        await asyncio.sleep(1.2)
        async with client.get("/health/ready") as response:
            assert "modles: unknown key" in (await response.json())["config_error"]
        async with client.post(CHAT, json=chat("chat")) as response:
            assert response.headers["x-response-cost"] == after != before


async def test_a_drain_finishes_streams_and_ends_the_rest_with_an_event(own):
    gateway = own(server={"drain_seconds": 2})
    async with session(gateway) as client:
        short = await client.post(CHAT, json=chat("chat,tokens=20,paced-ms=30", stream=True))
        long = await client.post(CHAT, json=chat("chat,tokens=500,paced-ms=30", stream=True))
        await long.content.readany()
        started = time.monotonic()
        stopping = asyncio.to_thread(gateway.signal, signal.SIGTERM)
        finished, cut, _ = await asyncio.gather(events(short), events(long), stopping)
        assert time.monotonic() - started < 6
    assert finished[-1] == "[DONE]"
    assert cut[-1]["error"]["code"] == "shutdown"
    statuses = sorted(entry.meta["status"] for entry in gateway.finals().values())
    assert statuses == ["failed", "ok"]


async def test_a_full_spool_refuses_before_the_upstream_is_called(own, upstream):
    gateway = own(log={"spool_bytes": 65536, "segment_bytes": 4096})
    async with session(gateway) as client:
        statuses = []
        for _ in range(60):
            async with client.post(CHAT, json=chat("chat,big-bytes=3000")) as response:
                statuses.append(response.status)
                body = await response.json()
        calls = len(upstream.calls())
        async with client.post(CHAT, json=chat("chat")) as response:
            assert response.status == 503 and "retry-after" in response.headers
        assert len(upstream.calls()) == calls
        async with client.get("/health/ready") as response:
            assert response.status == 503
        async with client.get("/health/live") as response:
            assert response.status == 200
        assert statuses[0] == 200 and statuses[-1] == 503 and body["error"]["code"] == "unavailable"
        for path in gateway.settings.spool_dir.glob("*.seg"):
            path.unlink()
        await asyncio.sleep(2)
        async with client.post(CHAT, json=chat("chat")) as response:
            assert response.status == 200


def test_clients_that_send_too_slowly_are_let_go(own):
    gateway = own(limits={"head_seconds": 1, "body_seconds": 1})
    address = ("127.0.0.1", gateway.given["server"]["port"])
    heads = [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + gateway.key.encode()
        + b"\r\nContent-Length: 100\r\n\r\n{",
    ]
    clients = [socket.create_connection(address) for _ in heads]
    for client, head in zip(clients, heads, strict=True):
        client.sendall(head)
        client.settimeout(5)
    started = time.monotonic()
    for client in clients:
        received = b""
        while chunk := client.recv(4096):
            received += chunk
        assert b"408" in received.split(b"\r\n")[0]
        client.close()
    assert time.monotonic() - started < 4


async def test_more_requests_than_a_worker_takes_are_shed(own):
    gateway = own(limits={"in_flight": 5})
    async with session(gateway) as client:

        async def status() -> int:
            async with client.post(CHAT, json=chat("chat,slow-ms=300")) as response:
                return response.status

        found = await asyncio.gather(*(status() for _ in range(20)))
    assert found.count(200) == 5 and found.count(503) == 15


async def test_a_slow_reader_costs_little_memory(own):
    gateway = own()
    model = "chat,big-bytes=5000000,tokens=5000"
    short = chat("chat,big-bytes=300000,tokens=300", stream=True)
    async with session(gateway) as client:
        # What a first batch of streams makes the process keep is not theirs.
        first = [await client.post(CHAT, json=short) for _ in range(20)]
        await asyncio.gather(*(events(response) for response in first))
        before = _resident(gateway.pid)
        readers = [
            await client.post(CHAT, json=chat(model, stream=True), read_bufsize=1024)
            for _ in range(20)
        ]
        await asyncio.sleep(2)
        grown = _resident(gateway.pid) - before
        for reader in readers:
            reader.close()
    assert grown / 20 < 256 * 1024


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_workers_share_a_port_and_a_revoked_key_stops_on_all(upstream, tmp_path):
    given = configuration(upstream.url)
    workers = [GatewayProcess(tmp_path / "home", given) for _ in range(2)]
    first = workers[0]
    try:
        for worker in workers:
            worker.start()
        connector = aiohttp.TCPConnector(force_close=True)
        headers = {"authorization": f"Bearer {first.key}"}
        async with aiohttp.ClientSession(first.url, headers=headers, connector=connector) as client:

            async def statuses(count: int) -> set[int]:
                found = set()
                for _ in range(count):
                    async with client.post(CHAT, json=chat("chat")) as response:
                        found.add(response.status)
                return found

            while len(writers(first)) < 2:  # the first answers for both; each has a spool segment
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)
            assert await statuses(60) == {200}
            assert len(writers(first, at_least=5000)) == 2
            first.keys.block(first.key, actor="test")
            await asyncio.sleep(1.0)
            assert await statuses(60) == {401}
    finally:
        for worker in workers:
            worker.stop()
    assert len(first.finals()) == 120


def writers(gateway: GatewayProcess, at_least: int = 0) -> set[str]:
    """The workers that have written so many bytes into the spool."""
    segments = gateway.settings.spool_dir.glob("*.seg")
    return {path.stem.rpartition("-")[0] for path in segments if path.stat().st_size >= at_least}
