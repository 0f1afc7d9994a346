"""A small engine on a real socket that behaves, and misbehaves, like vLLM with adapters.

    async with ScriptedEngine() as engine:
        ... engine.url ... engine.adapters ... engine.calls ...

Its answers are vLLM 0.32's own (docs/rollout.md). Faults are attributes, to be set at any time:
`load_seconds` (a load takes that long; a second call for the same name waits for it), `refusal`
(status and message of every load), `invisible` (loads succeed, `/v1/models` does not show them),
`silent` (it takes requests and answers none). `restart` forgets all adapters; `go_away` and
`come_back` close and open the port. A chat completion's text is `answer(body)`, by default the
model's name, after `answer_seconds`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

BASE = "base-model"
LOADED = (
    "The lora adapter '{}' has already been loaded. If you want to load the adapter in place, set "
    "'load_inplace' to True."
)


class ScriptedEngine:
    """The server; an asynchronous context manager.

    Attributes:
        base: name of the base model.
        adapters: paths by served names.
        calls: every request to it, as (path, body).
        key: bearer key that it wants, or None.
        updating: whether it loads adapters while it runs.
    """

    def __init__(self, base: str = BASE, *, key: str | None = None, updating: bool = True):
        self.base = base
        self.key = key
        self.updating = updating
        self.adapters: dict[str, str] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.port = 0
        self.load_seconds = 0.0
        self.answer_seconds = 0.0
        self.refusal: tuple[int, str] | None = None
        self.invisible = False
        self.silent = False
        self.answer: Callable[[dict[str, Any]], str] = lambda body: str(body["model"])
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def loads(self) -> list[str]:
        """Names that it was asked to load, in order."""
        return [body["lora_name"] for path, body in self.calls if path == "/v1/load_lora_adapter"]

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
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self.updating:
            app.router.add_post("/v1/load_lora_adapter", self._load)
            app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def go_away(self) -> None:
        """Close the port and what goes through it."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """End and start again: adapters are forgotten."""
        await self.go_away()
        self.adapters.clear()
        await self.come_back()

    @web.middleware
    async def _door(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        self.calls.append((request.path, orjson.loads(body) if body else {}))
        if self.silent:
            await asyncio.sleep(3600)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPNotFound:
            return web.json_response({"detail": "Not Found"}, status=404)
        return answer

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _request: web.Request) -> web.Response:
        shown = {} if self.invisible else self.adapters
        models = [{"id": self.base, "object": "model", "root": "/models/base", "parent": None}]
        models += [
            {"id": name, "object": "model", "root": path, "parent": self.base}
            for name, path in shown.items()
        ]
        return web.json_response({"object": "list", "data": models})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        # Shielded: vLLM finishes a load whose caller has gone.
        return await asyncio.shield(asyncio.ensure_future(self._loaded(name, path)))

    async def _loaded(self, name: str, path: str) -> web.Response:
        async with self._locks[name]:
            if name in self.adapters:
                return _refused(400, LOADED.format(name))
            await asyncio.sleep(self.load_seconds)
            if self.refusal is not None:
                return _refused(*self.refusal)
            self.adapters[name] = path
            return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        async with self._locks[name]:
            if name not in self.adapters:
                return _refused(404, f"The lora adapter '{name}' cannot be found.")
            del self.adapters[name]
            return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model = body["model"]
        if model != self.base and model not in self.adapters:
            return _refused(404, f"The model `{model}` does not exist. Valid aliases: {self.base}.")
        await asyncio.sleep(self.answer_seconds)
        head = {"id": "chatcmpl-1", "created": 1, "model": model}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        text = self.answer(body)
        if not body.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
            whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return web.json_response(whole)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        head["object"] = "chat.completion.chunk"
        delta = {"index": 0, "delta": {"role": "assistant", "content": text}}
        for event in (
            {**head, "choices": [{**delta, "finish_reason": None}]},
            {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {**head, "choices": [], "usage": usage},
        ):
            await stream.write(b"data: " + orjson.dumps(event) + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream


def _refused(status: int, message: str) -> web.Response:
    kind = {400: "InvalidUserInput", 404: "NotFoundError"}.get(status, "InternalServerError")
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status)
