"""A prompt with versions, and users who like some more than others, over real sockets."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from gateway.audit import AuditFilter, entries
from gateway.configuration import Metric
from gateway.database import Database, now
from gateway.prompt_versions import PRODUCTION, PromptVersionRow, label_of, put_version
from gateway.splits import find_split
from gateway.variants import Split
from pipelines.champion import Services, hold
from pipelines.engines import NothingToLoad
from pipelines.experiment import Trial, find_experiment, start
from pipelines.plan import Plan
from pipelines.prompt_labels import FIRST, LabelMove, move_label
from pipelines.tables import ExperimentRow
from prompts.prompt import Prompt
from tests.gateway_process import ROOT, GatewayProcess

METRICS = {"helpful": Metric(type="boolean")}
IN_FORCE_SECONDS = 2.0
WITHIN = 20.0
REFUSAL = "I'm sorry, but I can't help with that."


def prompt(name: str, said: str, **fields: Any) -> Prompt:
    """One version; `said` may use `who`."""
    given = {
        "name": name,
        "messages": [{"role": "user", "content": said}],
        "variables": [{"name": "who"}],
        "model": "chat,tokens=4",
    }
    return Prompt.model_validate(given | fields)


def put(database: Database, version: str, given: Prompt) -> None:
    """Write a version, as a sync does."""
    row = PromptVersionRow(
        name=given.name, version=version, content_hash=given.content_hash, content=given.content,
        git_sha="a" * 40, path=f"{given.name}.yaml", created_at=now(),
    )  # fmt: skip
    with database.transaction() as session:
        put_version(session, row)


def first(database: Database, name: str, version: str = "1") -> None:
    """Label a version as the first in production."""
    with database.transaction() as session:
        hold(session)
        move_label(session, LabelMove(FIRST, name, version, "anna", "the first"))


def plan(**changes: Any) -> Plan:
    """A settled plan that decides soon."""
    given: dict[str, Any] = {"metric": "helpful", "minimum_users": 5, "maximum_users": 400}
    return Plan.model_validate(given | changes).settled(METRICS)


async def begin(
    database: Database, name: str, version: str | None, **changes: Any
) -> ExperimentRow:
    """Start an experiment of a version."""
    alias = f"prompt:{name}"
    given: dict[str, Any] = {"plan": plan(), "actor": "anna"} | changes
    trial = Trial(alias, alias, version, **given)
    return await start(Services(database, NothingToLoad()), trial)


@dataclass(frozen=True, slots=True)
class PromptState:
    """What the state database holds of a prompt, read at once; actions oldest first."""

    production: str | None
    split: Split | None
    actions: list[str]


def state_of(database: Database, name: str) -> PromptState:
    """Everything that an experiment of `name` touches."""
    with database.session() as session:
        trail = [one.change for one in reversed(entries(session, AuditFilter(limit=1000)))]
        return PromptState(
            label_of(session, name, PRODUCTION),
            find_split(session, f"prompt:{name}"),
            [
                one.action
                for one in trail
                if one.subject == f"prompt:{name}"
                or (one.after or {}).get("alias") == f"prompt:{name}"
            ],
        )


def row_of(database: Database, experiment_id: str) -> ExperimentRow:
    """The experiment as it is now."""
    with database.session() as session:
        return find_experiment(session, experiment_id)


async def until(true: Callable[[], Any], what: str, within: float = WITHIN) -> float:
    """Seconds until it is true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within, f"not within {within} s: {what}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


class Crowd:
    """Users of a prompt, who say `helpful` of a version as often as `taste` says."""

    def __init__(self, client: aiohttp.ClientSession, name: str, taste: Mapping[str, float]):
        self.client = client
        self.name = name
        self.taste = taste
        self.seen: dict[str, set[str]] = {}
        self._random = random.Random(name)

    async def ask(self, user: str, **fields: Any) -> tuple[int, str | None]:
        """One request and, where it is answered, feedback on it; status and version."""
        body = {"prompt_id": self.name, "prompt_variables": {"who": user}, "user": user} | fields
        async with self.client.post("/v1/chat/completions", json=body) as answer:
            version, request_id = (
                answer.headers.get(name) for name in ("x-prompt-version", "x-request-id")
            )
        if version is not None:
            self.seen.setdefault(user, set()).add(version)
        if answer.status == 200 and version is not None and version in self.taste:
            said = {"request_id": request_id, "metric_name": "helpful",
                    "value": self._random.random() < self.taste[version]}  # fmt: skip
            async with self.client.post("/v1/feedback", json=said) as taken:
                assert taken.status < 300, await taken.text()
        return answer.status, version

    async def come(self, first: int, last: int) -> None:
        """Users number `first` to `last`, a few at a time."""
        numbers = iter(range(first, last))

        async def some() -> None:
            for number in numbers:
                await self.ask(f"{self.name}-{number}")

        await asyncio.gather(*(some() for _ in range(8)))

    async def served(self, version: str, user: str = "looker") -> float:
        """Seconds until `user` gets `version`."""
        began = time.monotonic()
        while (await self.ask(user))[1] != version:
            assert time.monotonic() - began < IN_FORCE_SECONDS, f"version {version} is not served"
            await asyncio.sleep(0.05)
        return time.monotonic() - began


class ControllerProcess:
    """`python -m pipelines.controller` on a gateway's home; a context manager."""

    def __init__(self, gateway: GatewayProcess):
        self._gateway = gateway

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with (self._gateway.home / "controller.out").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipelines.controller"],
                env={**os.environ, **self._gateway.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """End it without warning."""
        self._process.kill()
        self._process.wait()

    def output(self) -> str:
        return (self._gateway.home / "controller.out").read_text()
