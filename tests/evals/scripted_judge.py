"""A scripted judge: an OpenAI-compatible server on a real socket whose answers a test writes.

    with scripted_judge(backstage, answer) as judge: ... judge.url ... judge.bodies ...

`answer` gets each chat request's body and gives the content of the answer, or a status and a body.
Embeddings are letters counted, so that equal texts are equally near.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.pipelines.backstage import Backstage

Said = str | tuple[int, dict[str, Any]]
MODEL = "scripted-judge"


@dataclass
class ScriptedJudge:
    """Where it is, and every chat body it was sent."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)


@contextmanager
def scripted_judge(
    backstage: Backstage, answer: Callable[[dict[str, Any]], Said]
) -> Iterator[ScriptedJudge]:
    judge = ScriptedJudge()

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        judge.bodies.append(body)
        said = answer(body)
        if isinstance(said, tuple):
            return web.json_response(said[1], status=said[0])
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
        headers = {"x-response-cost": "0.000001", "x-model": f"judge/{MODEL}"}
        return web.json_response({**whole, "choices": [choice], "usage": usage}, headers=headers)

    async def embeddings(request: web.Request) -> web.Response:
        import base64
        import struct

        given = (await request.json())["input"]
        judge.embedded += given
        data = []
        for index, text in enumerate(given):
            counts = [text.lower().count(chr(97 + letter)) for letter in range(26)]
            length = sum(one * one for one in counts) ** 0.5 or 1.0
            vector = base64.b64encode(struct.pack("<26f", *(one / length for one in counts)))
            data.append({"index": index, "embedding": vector.decode(), "object": "embedding"})
        return web.json_response({"object": "list", "data": data, "model": "letters"})

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", chat)
        application.router.add_post("/v1/embeddings", embeddings)
        runner = web.AppRunner(application, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        judge.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    runner = backstage.run(start())
    try:
        yield judge
    finally:
        backstage.run(runner.cleanup())
