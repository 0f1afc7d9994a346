"""A gateway and a loop for the demo's tests: real HTTP, real assignment, real statistics, no model.

`ScriptedGateway` answers chats as the arm's adapter would, by its quality, and takes feedback;
`ScriptedLoop` trains by making adapters up and decides experiments on that feedback.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count, islice
from typing import Any

import uuid_utils
from aiohttp import web

from deploy.demo.stage import (
    HELD,
    PROMOTED,
    ROLLED_BACK,
    RUNNING,
    STOPPED,
    Answered,
    ArmState,
    Chain,
    Champion,
    LoopFailed,
    Show,
    Step,
    Trained,
    TrainingOrder,
    TrialOrder,
    TrialState,
)
from deploy.demo.users import Rule, arrivals
from evals.confidence_sequence import Sample, difference_interval
from evals.records import Decision, MetricResult, Verdict
from gateway.database import now
from gateway.variants import Arm, Split, Variant

SALT = "00" * 16
MINIMUM_USERS = 8
Opinions = dict[str, dict[str, Any]]


@dataclass
class Row:
    """A request as a log would have it."""

    request_id: str
    user: str
    variant: str
    adapter: str | None
    experiment: str | None
    at: datetime
    status: int = 200


def alone(adapter: str | None) -> Split:
    """Everybody is answered by the champion."""
    return Split("extractor", (Arm(Variant("champion", adapter=adapter), 1.0),), None, SALT)


@dataclass
class ScriptedGateway:
    """Answers by the arm's quality: the share of texts that an adapter gets right.

    `fails`: every so many requests one is answered 500; 0: none. `disguise` is put where a client
    could see who answered, and a user must not.
    """

    expected: Mapping[str, Any]
    qualities: dict[str | None, float] = field(default_factory=lambda: {None: 0.0})
    delay: float = 0.01
    fails: int = 0
    disguise: str = ""
    split: Split = field(default_factory=lambda: alone(None))
    rows: list[Row] = field(default_factory=list)
    opinions: Opinions = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    async def chat(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._chat(await request.json())
        finally:
            self.in_flight -= 1

    async def _chat(self, body: Mapping[str, Any]) -> web.Response:
        split, user = self.split, body["user"]
        variant = split.choose("default", user)
        row = Row(
            str(uuid_utils.uuid7()), user, variant.name, variant.adapter, split.experiment_id, now()
        )
        await asyncio.sleep(self.delay)
        self.rows.append(row)
        if self.fails and len(self.rows) % self.fails == 0:
            row.status = 500
            return web.json_response({"error": {"message": "scripted"}}, status=500)
        text = self.answer(body["messages"][-1]["content"], variant.adapter)
        who = f"{self.disguise or variant.adapter}"
        answer = {
            "id": f"chatcmpl-{row.request_id}",
            "model": who,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        }
        return web.json_response(answer, headers={"x-variant": who, "x-model": who})

    def answer(self, asked: str, adapter: str | None) -> str:
        """Right for a share of the texts, always the same ones."""
        point = int(hashlib.sha256(asked.encode()).hexdigest()[:8], 16) / 16**8
        if point < self.qualities[adapter]:
            return json.dumps(self.expected[asked])
        return "Sure! Here is the JSON you asked for:"

    async def feedback(self, request: web.Request) -> web.Response:
        body = await request.json()
        request_id = body["request_id"].removeprefix("chatcmpl-")
        self.opinions.setdefault(request_id, {})[body["metric_name"]] = body["value"]
        return web.json_response({"feedback_id": str(uuid_utils.uuid7())})


def gateway_for(seeds: Sequence[int], **options: Any) -> ScriptedGateway:
    """A gateway that knows what the users of these seeds write about."""
    expected = {
        case.messages[-1]["content"]: case.expected
        for seed in seeds
        for user in islice(arrivals(seed, Rule()), 1500)
        for case in user.cases
    }
    return ScriptedGateway(expected, **options)


@contextmanager
def served(gateway: ScriptedGateway) -> Iterator[ScriptedGateway]:
    """The gateway on a port of its own, in a thread of its own."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", gateway.chat)
        app.router.add_post("/v1/feedback", gateway.feedback)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        gateway.url = f"http://127.0.0.1:{port}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@dataclass
class _Trial:
    order: TrialOrder
    split: Split
    started_at: datetime
    versions: tuple[str | None, str | None]
    state: str = RUNNING
    message: str | None = None
    ended_at: datetime | None = None
    promotion_id: str | None = None


@dataclass
class ScriptedLoop:
    """The contract of `deploy.demo.stage.Loop`, on a scripted gateway.

    Attributes:
        gain: what a training adds to the base's quality; below 0.2 the gate rejects.
        reckless: it promotes whatever the candidate is, an A/A too.
    """

    gateway: ScriptedGateway
    gain: float = 0.9
    reckless: bool = False
    held_out: int = 60
    versions_made: dict[str, str] = field(default_factory=dict)
    top: str | None = None
    trials: dict[str, _Trial] = field(default_factory=dict)
    interrupt_after: int | None = None
    looks: int = 0
    known: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def problems(self) -> Sequence[str]:
        return [
            f"experiment {name} is under way"
            for name, trial in self.trials.items()
            if trial.state == RUNNING
        ]

    def thresholds(self) -> Mapping[str, str]:
        return {"gate": "exact_match, lower bound above +20 points", "alpha": "0.05"}

    def versions(self) -> Mapping[str, str]:
        return {"engine": "scripted 1.0"}

    def champion(self) -> Champion:
        return Champion(self.top, self._adapter(self.top), self.top)

    def return_to_base(self, reason: str) -> None:
        self._crown(None)

    def train(self, order: TrainingOrder, show: Show) -> Trained:
        corrected = [one for one in self.gateway.opinions.values() if "demonstration" in one]
        if not corrected:
            raise LoopFailed("the data set is too small: 0 corrected answers")
        for step in range(3):
            show(Step("train", step + 1, 3, f"loss {1 / (step + 1):.2f}"))
        number = order.held_out or self.held_out
        right = round(self.gain * number)
        base, candidate = [0.0] * number, [1.0] * right + [0.0] * (number - right)
        delta = right / number
        metric = MetricResult(
            "exact_match", 0.0, delta, delta, delta - 0.1, delta + 0.05, number, delta > 0.3
        )
        decision = Decision.PROMOTE if delta > 0.3 else Decision.REJECT
        version = adapter = None
        if decision is Decision.PROMOTE:
            version, adapter = self._register(self.gain)
        verdict_id = str(uuid_utils.uuid7())
        dataset_id, training_id = f"{order.seed:032x}", f"{order.seed + 1000:032x}"
        self.known |= {dataset_id, training_id, verdict_id}
        return Trained(
            run_id=str(uuid_utils.uuid7()),
            dataset_id=dataset_id,
            training_id=training_id,
            version=version,
            adapter=adapter or "extractor-none",
            rows={"train": len(corrected), "validation": 3},
            exact_match=metric,
            verdict=Verdict(
                verdict_id, adapter or "extractor-none", "base", decision, (metric,),
                ("the gain is above the margin",), {}, now(),
            ),
            baseline=base,
            candidate=candidate,
            losses=(0.7, 0.1),
            seconds={"train": 0.5, "rollout": 0.1},
        )  # fmt: skip

    def register_ruined(self, version: str, reason: str) -> tuple[str, str]:
        assert version in self.versions_made
        return self._register(0.0)

    def start_trial(self, order: TrialOrder) -> str:
        assert not self.problems()
        experiment_id = str(uuid_utils.uuid7())
        arms = (
            Arm(Variant("champion", adapter=self._adapter(self.top)), 0.5),
            Arm(Variant("challenger", adapter=self._adapter(order.version or self.top)), 0.5),
        )
        split = Split("extractor", arms, experiment_id, f"{next(self.numbers):032x}")
        versions = (self.top, order.version or self.top)
        self.trials[experiment_id] = _Trial(order, split, now(), versions)
        self.gateway.split = split
        return experiment_id

    def trial(self, experiment_id: str) -> TrialState:
        self.looks += 1
        if self.interrupt_after is not None and self.looks > self.interrupt_after:
            raise KeyboardInterrupt
        trial = self.trials[experiment_id]
        values = self._values(experiment_id)
        first, second = (Sample.of(values[arm.variant.name]) for arm in trial.split.arms)
        interval = difference_interval(first, second)
        users = sum(map(len, values.values()))
        if trial.state == RUNNING:
            self._decide(trial, values, interval.low, interval.high)
        arms = tuple(
            ArmState(arm.variant.name, version, arm.variant.adapter, len(values[arm.variant.name]),
                     sample.mean)
            for arm, version, sample in zip(
                trial.split.arms, trial.versions, (first, second), strict=True
            )
        )  # fmt: skip
        known = users > 0 and interval.estimate is not None
        return TrialState(
            experiment_id=experiment_id,
            state=trial.state,
            arms=arms,
            delta=interval.estimate,
            ci_low=interval.low if known else None,
            ci_high=interval.high if known else None,
            confidence=0.95,
            message=trial.message,
            verdict_id=None,
            promotion_id=trial.promotion_id,
            started_at=trial.started_at,
            ended_at=trial.ended_at,
        )

    def stop_trial(self, experiment_id: str, reason: str) -> None:
        trial = self.trials[experiment_id]
        if trial.state == RUNNING:
            self._end(trial, STOPPED, reason)

    def answered(self, users: str, since: datetime) -> Sequence[Answered]:
        rows: dict[str | None, list[Row]] = {}
        for row in self.gateway.rows:
            if row.user.startswith(users) and row.at >= since:
                rows.setdefault(row.adapter, []).append(row)
        return [
            Answered(
                adapter,
                len(found),
                sum(row.status != 200 for row in found),
                len({row.user for row in found}),
                min(row.at for row in found),
                max(row.at for row in found),
            )
            for adapter, found in rows.items()
        ]

    def chain(self, identifier: str, version: str) -> Chain:
        ids = self.known | set(self.trials)
        return Chain(f"promotion {identifier}", frozenset(ids), True, "1 chain, no gap")

    def _adapter(self, version: str | None) -> str | None:
        return None if version is None else self.versions_made[version]

    def _register(self, quality: float) -> tuple[str, str]:
        version = str(len(self.versions_made) + 1)
        adapter = f"extractor-{int(version):012x}"
        self.versions_made[version] = adapter
        self.gateway.qualities[adapter] = quality
        return version, adapter

    def _values(self, experiment_id: str) -> dict[str, list[float]]:
        heard: dict[str, dict[str, float]] = {"champion": {}, "challenger": {}}
        for row in list(self.gateway.rows):
            said = self.gateway.opinions.get(row.request_id, {})
            if row.experiment == experiment_id and "helpful" in said:
                heard[row.variant].setdefault(row.user, float(said["helpful"]))
        return {arm: list(users.values()) for arm, users in heard.items()}

    def _decide(
        self, trial: _Trial, values: Mapping[str, Sequence[float]], low: float, high: float
    ) -> None:
        enough = min(map(len, values.values())) >= MINIMUM_USERS
        if enough and (low > 0 or self.reckless):
            trial.promotion_id = str(uuid_utils.uuid7())
            self._end(trial, PROMOTED, "the candidate is better")
        elif enough and high < 0:
            self._end(trial, ROLLED_BACK, "the candidate is worse")
        elif sum(map(len, values.values())) >= trial.order.maximum_users:
            self._end(trial, HELD, "no decision with all users")

    def _end(self, trial: _Trial, state: str, message: str) -> None:
        trial.state, trial.message, trial.ended_at = state, message, now()
        self._crown(trial.versions[1] if state == PROMOTED else trial.versions[0])

    def _crown(self, version: str | None) -> None:
        self.top = version
        self.gateway.split = alone(self._adapter(version))
