"""SIGKILL of a gateway under load: every answer that a client got whole is in the log, once.

Clients note what they received to its end; the worker is killed at random moments and started
again; the shipper commits all the while. Afterwards three ledgers must agree: what the clients saw
is in the log, once, and the log knows of every call that the upstream was asked.
`LLMOPS_TEST_SEED` replays the moments.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field

import aiohttp
import orjson
import pytest

from gateway.configuration import load_configuration
from gateway.request_log import LogReader
from tests.gateway_process import ROOT, GatewayProcess, configuration
from tests.scripted_upstream import ScriptedUpstreamProcess

ACKNOWLEDGED = 20_000
CLIENTS = 32
KILLS = 3
BETWEEN_KILLS = (1.0, 4.0)
DRAIN_SECONDS = 60
DONE = b"data: [DONE]\n\n"


@dataclass
class Clients:
    """The load, and what was received to its end: nonce to request id and bytes."""

    gateway: GatewayProcess
    unary: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    streams: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    sent: int = 0
    kills: int = 0

    def enough(self) -> bool:
        """A quick machine has its answers before the third kill: then the load goes on."""
        answers = min(len(self.unary), len(self.streams))
        return answers >= ACKNOWLEDGED // 2 and self.kills >= KILLS

    async def run(self, session: aiohttp.ClientSession) -> None:
        while not self.enough():
            self.sent += 1
            nonce = f"nonce-{self.sent:06x}"
            stream = len(self.streams) < len(self.unary)
            try:
                await self._one(session, nonce, stream)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                await asyncio.sleep(0.05)

    async def _one(self, session: aiohttp.ClientSession, nonce: str, stream: bool) -> None:
        body = {
            "model": "chat,tokens=2",
            "messages": [{"role": "user", "content": nonce}],
            "stream": stream,
        }
        async with session.post("/v1/chat/completions", data=orjson.dumps(body)) as response:
            received = await response.read()
            if response.status != 200 or (stream and not received.endswith(DONE)):
                return
            book = self.streams if stream else self.unary
            book[nonce] = (response.headers["x-request-id"], received)


async def kill_again_and_again(gateway: GatewayProcess, clients: Clients) -> None:
    seed = int(os.environ.get("LLMOPS_TEST_SEED") or time.time_ns() % 1_000_000)
    print(f"LLMOPS_TEST_SEED={seed}")
    moments = random.Random(seed)
    while not clients.enough():
        await asyncio.sleep(moments.uniform(*BETWEEN_KILLS))
        await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)
        clients.kills += 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", ["buffered", "sync"])
async def test_no_acknowledged_answer_is_lost_or_doubled(tmp_path, durability):
    with ScriptedUpstreamProcess() as upstream:
        given = configuration(
            upstream.url,
            log={"durability": durability, "segment_seconds": 0.5, "commit_seconds": 0.5},
        )
        gateway = GatewayProcess(tmp_path / "home", given).start()
        shipper = subprocess.Popen(
            [sys.executable, "-m", "gateway.shipper"], cwd=ROOT, env=gateway.environ
        )
        try:
            clients = Clients(gateway)
            headers = {"authorization": f"Bearer {gateway.key}"}
            connector = aiohttp.TCPConnector(limit=CLIENTS)
            async with aiohttp.ClientSession(
                gateway.url, headers=headers, connector=connector
            ) as session:
                load = asyncio.gather(*(clients.run(session) for _ in range(CLIENTS)))
                await kill_again_and_again(gateway, clients)
                await load
            gateway.stop()
            wait_until_shipped(gateway)
            asked = upstream.counts()["/v1/chat/completions"]
        finally:
            gateway.stop()
            shipper.terminate()
            shipper.wait(timeout=30)
    check(gateway, clients, asked)


def wait_until_shipped(gateway: GatewayProcess) -> None:
    end = time.monotonic() + DRAIN_SECONDS
    while any(gateway.settings.spool_dir.glob("*.seg")):
        assert time.monotonic() < end, "the spool does not drain"
        time.sleep(0.2)


def check(gateway: GatewayProcess, clients: Clients, asked: int) -> None:
    log = load_configuration(gateway.config_path).log
    reader = LogReader.open(gateway.settings, log)
    found = reader.select(
        "SELECT request_id, status, request, response FROM requests", bodies=True
    ).rows
    rows = {row[0]: row[1:] for row in found}
    assert len(rows) == len(found), "a request is in the log twice"
    acknowledged = {**clients.unary, **clients.streams}
    assert len(acknowledged) >= ACKNOWLEDGED and clients.kills >= KILLS
    missing = [request_id for request_id, _ in acknowledged.values() if request_id not in rows]
    assert not missing, f"{len(missing)} acknowledged answers are not in the log"
    for nonce, (request_id, received) in acknowledged.items():
        status, request, response = rows[request_id]
        assert status == "ok"
        assert nonce in request and nonce in response
        if nonce in clients.unary:
            assert response.encode() == received
    assert len(rows) >= asked, "the upstream was asked more than the log knows"
    interrupted = sum(1 for row in rows.values() if row[0] == "interrupted")
    print(f"{len(acknowledged)} acknowledged, {interrupted} interrupted, {clients.kills} kills")
