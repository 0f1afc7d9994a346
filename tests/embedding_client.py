"""A client of the embedding server, for tests: it knows when what was computed is in Redis."""

import asyncio
import time
from typing import Any

import aiohttp
import orjson

MODEL = "all-MiniLM-L6-v2"


class EmbeddingClient:
    """Asks the server, and waits until what it computed is written."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, body: Any, tenant: str | None = None) -> tuple[int, Any, Any]:
        """Status, headers and parsed body."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {} if tenant is None else {"x-llmops-tenant": tenant}
        async with self._session.post("/v1/embeddings", data=data, headers=headers) as answer:
            return answer.status, answer.headers, orjson.loads(await answer.read())

    async def ask(self, given: Any, model: str = MODEL, **more: Any) -> tuple[str, Any]:
        """`x-cache` with `x-cache-items`, and the body of an answer that must be 200."""
        tenant = more.pop("tenant", None)
        status, headers, body = await self.post({"model": model, "input": given, **more}, tenant)
        assert status == 200, body
        return f"{headers['x-cache']} {headers['x-cache-items']}", body

    async def count(self, name: str) -> int:
        """One of the server's counters."""
        async with self._session.get("/metrics") as answer:
            text = await answer.text()
        lines = [line for line in text.splitlines() if line.startswith(f"llmops_embedding_{name} ")]
        return int(lines[0].split()[1])

    async def settle(self) -> None:
        """Wait until nothing is queued for Redis."""
        await self.until("queued", 0)

    async def until(self, name: str, value: int, seconds: float = 10) -> None:
        """Wait for a counter's value."""
        deadline = time.monotonic() + seconds
        while await self.count(name) != value:
            assert time.monotonic() < deadline, f"{name} is {await self.count(name)}, not {value}"
            await asyncio.sleep(0.02)
