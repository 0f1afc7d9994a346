"""The application in front of the gateway that simulated users sit at.

It sends their requests, keeps the answer's id to itself and sends their opinions under it. From
here to a user goes the text of the reply; no header, id or model name passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from deploy.demo.users import Opinion, SimulatedUser

REQUEST_SECONDS = 120.0
SHOWN_CHARACTERS = 300


class AskFailed(RuntimeError):
    """The gateway did not answer as it should; the message says what came."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Where the gateway is, and what the application asks it with.

    Attributes:
        url: the gateway, up to and without `/v1`.
        alias: the model's public name.
        parameters: fields of every request's body, such as `max_tokens`.
    """

    url: str
    key: str = field(repr=False)
    alias: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Desk:
    """Takes users' visits; an asynchronous context manager."""

    def __init__(self, counter: Counter, *, connections: int):
        self._counter = counter
        self._connections = connections
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            headers={"Authorization": f"Bearer {self._counter.key}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def visit(self, user: SimulatedUser, number: int) -> Opinion:
        """One request of `user` and what it says of the reply, sent as feedback.

        Raises:
            AskFailed: the request or the feedback was not taken.
        """
        answered: list[str] = []

        async def ask(messages: Sequence[Mapping[str, Any]]) -> str:
            body = await self.send(
                "chat/completions",
                {
                    **self._counter.parameters,
                    "model": self._counter.alias,
                    "messages": list(messages),
                    "user": user.user_id,
                },
            )
            answered.append(_field(body, "id"))
            return _text(body)

        opinion = await user.visit(number, ask)
        await self._tell(answered[-1], opinion)
        return opinion

    async def _tell(self, answer_id: str, opinion: Opinion) -> None:
        said: dict[str, bool | str | None] = {
            "helpful": opinion.helpful,
            "demonstration": opinion.correction,
        }
        for metric, value in said.items():
            if value is not None:
                about = {"request_id": answer_id, "metric_name": metric, "value": value}
                await self.send("feedback", about)

    async def send(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Post a JSON object under `/v1/`; the answer's. Raises AskFailed."""
        if self._http is None:
            raise RuntimeError("the desk is not open: use it with `async with`")
        try:
            async with self._http.post(
                f"{self._counter.url}/v1/{path}",
                data=orjson.dumps(body),
                headers={"Content-Type": "application/json"},
            ) as response:
                raw = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AskFailed(f"{path}: {type(error).__name__} {error}") from error
        if status != 200:
            text = " ".join(raw[:SHOWN_CHARACTERS].decode(errors="replace").split())
            raise AskFailed(f"{path}: status {status}: {text}")
        return _object(raw, path)


def _object(raw: bytes, path: str) -> Mapping[str, Any]:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise AskFailed(f"{path}: the answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise AskFailed(f"{path}: the answer is not a JSON object")
    return found


def _text(body: Mapping[str, Any]) -> str:
    try:
        text = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise AskFailed(f"chat/completions: no choice in the answer: {body!r:.300}") from error
    if not isinstance(text, str):
        raise AskFailed("chat/completions: the answer's content is not text")
    return text


def _field(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise AskFailed(f"chat/completions: the answer has no {name}")
    return value
