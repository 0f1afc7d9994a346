"""A scripted upstream and a real worker in front of it, shared by a module's tests."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.gateway_process import GatewayProcess, configuration
from tests.scripted_upstream import ScriptedUpstreamProcess


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstreamProcess]:
    with ScriptedUpstreamProcess() as process:
        yield process


@pytest.fixture(scope="module")
def gateway(
    upstream: ScriptedUpstreamProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    given = configuration(
        upstream.url,
        upstreams={
            "up": {"url": upstream.url, "timeouts": {"first_byte": 1, "idle": 1, "connect": 1}},
            "vllm": {"url": upstream.url, "engine": "vllm", "tell_tenant": True},
            "nowhere": {"url": "http://127.0.0.1:9/v1"},
            "drained": {"url": upstream.url, "on_disconnect": "drain"},
        },
        models={
            "engine": {"upstream": "vllm", "model": "chat", "max_output_tokens": 50},
            "dead": {"upstream": "nowhere"},
            "drained": {"upstream": "drained", "model": "chat,tokens=20,paced-ms=20"},
        },
        limits={"body_bytes": 64 * 1024},
    )
    process = GatewayProcess(tmp_path_factory.mktemp("gateway") / "home", given).start()
    yield process
    process.stop()


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield session
