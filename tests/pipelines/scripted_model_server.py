"""A small model server on a real socket that behaves, and misbehaves, like KServe's.

    async with ScriptedModelServer() as server:
        ... server.url ... server.versions ... server.calls ...

Faults are attributes, to be set at any time: `refusal` (why no load succeeds), `unready` (versions
are listed and never ready), `load_seconds`, `silent` (it takes requests and answers none).
"""

import asyncio
from types import TracebackType
from typing import Any, Self

from aiohttp import web

REFUSED = (
    "Model with name {} is not ready. Error type: "
    "<class 'gateway.tabular_model.ModelUnusable'> error msg: {}"
)


class ScriptedModelServer:
    """The server; an asynchronous context manager. `calls`: every method and path."""

    def __init__(self) -> None:
        self.versions: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.port = 0
        self.load_seconds = 0.0
        self.refusal: str | None = None
        self.unready = False
        self.silent = False
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2"

    def loads(self) -> list[str]:
        """Names that it was asked to load, in order."""
        return [path.split("/")[-2] for _, path in self.calls if path.endswith("/load")]

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.go_away()

    async def come_back(self) -> None:
        """Listen, on the port that it had before if it had one."""
        app = web.Application(middlewares=[self._door])
        app.router.add_get("/v2/models", self._models)
        app.router.add_get("/v2/models/{name}/ready", self._ready)
        app.router.add_post("/v2/repository/models/{name}/load", self._load)
        app.router.add_post("/v2/repository/models/{name}/unload", self._unload)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def go_away(self) -> None:
        """Close the port and what goes through it."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _door(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        if self.silent:
            await asyncio.sleep(3600)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"models": sorted(self.versions)})

    async def _ready(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.versions:
            return _error(404, f"Model with name {name} does not exist.")
        if self.unready:
            return _error(503, f"Model with name {name} is not ready.")
        return web.json_response({"name": name, "ready": True})

    async def _load(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await asyncio.sleep(self.load_seconds)
        if self.refusal is not None:
            return _error(503, REFUSED.format(name, self.refusal))
        self.versions.add(name)
        return web.json_response({"name": name, "load": True})

    async def _unload(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.versions:
            return _error(404, f"Model with name {name} does not exist.")
        self.versions.remove(name)
        return web.json_response({"name": name, "unload": True})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
