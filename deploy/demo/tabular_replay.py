"""The replay of a month through the gateway, in the order of time: what becomes known is put into
the online store, flights are asked about, and labels come as feedback once they are known.

The requests' own moments are real; the flights' are simulated. A request's tags say which flight it
is about and its body when that was due.
"""

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deploy.demo.desk import AskFailed, Counter, Desk
from deploy.demo.stage import Show, Step
from deploy.demo.tabular_terms import FlightTerms
from deploy.demo.tabular_year import ID, KNOWN, LABEL, MOMENT, OnlineFeed, Table
from gateway.feature_schema import FeatureSchema

SHOWN_REASONS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said of a flight."""

    flight_id: str
    request_id: str
    probability: float
    version: str
    features: Mapping[str, Any]


@dataclass(slots=True)
class Replayed:
    """A month's answers, in the order of the flights, and its account."""

    answers: list[Answer] = field(default_factory=list)
    sent: int = 0
    failed: int = 0
    labels: int = 0
    written: int = 0
    reasons: list[str] = field(default_factory=list)


class Replay:
    """Plays months one after another; labels that are known later than a month's end come then.

    Args:
        schema: of the model's feature service: which columns a request brings.
    """

    def __init__(self, counter: Counter, terms: FlightTerms, schema: FeatureSchema,
                 feed: OnlineFeed):  # fmt: skip
        self._counter = counter
        self._terms = terms
        self._schema = schema
        self._feed = feed
        self._due: list[tuple[datetime, str, bool]] = []  # labels: known from then on

    def play(self, label: str, flights: Table, until: datetime, show: Show) -> Replayed:
        """Ask about `flights`; tell what is known by `until`."""
        return asyncio.run(self._play(label, flights, until, show))

    def finish(self, show: Show) -> Replayed:
        """Tell the labels that are left."""
        done = Replayed()
        last = max((due for due, *_ in self._due), default=None)

        async def tell() -> None:
            async with Desk(self._counter, connections=self._terms.budget.at_once) as desk:
                if last is not None:
                    await self._tell(desk, last, done)

        asyncio.run(tell())
        show(Step("labels", done.labels, done.labels))
        return done

    async def _play(self, label: str, flights: Table, until: datetime, show: Show) -> Replayed:
        done, limit = Replayed(), self._terms.budget.at_once
        async with Desk(self._counter, connections=limit) as desk:
            for hour, due in flights.groupby(flights[MOMENT].dt.floor("h"), sort=True):
                await self._tell(desk, hour.to_pydatetime(), done)
                done.written += self._feed.bring_to(hour.to_pydatetime())
                await self._ask_all(desk, due.to_dict("records"), done)
                show(Step(label, done.sent, len(flights), f"{hour:%d %b %H:%M}"))
            await self._tell(desk, until, done)
        return done

    async def _ask_all(
        self, desk: Desk, flights: Sequence[Mapping[str, Any]], done: Replayed
    ) -> None:
        answers = await asyncio.gather(*(self._ask(desk, flight, done) for flight in flights))
        for flight, answer in zip(flights, answers, strict=True):
            if answer is None:
                continue
            done.answers.append(answer)
            if isinstance(flight[LABEL], bool):
                known = flight[KNOWN].to_pydatetime()
                heapq.heappush(self._due, (known, answer.request_id, flight[LABEL]))

    async def _ask(self, desk: Desk, flight: Mapping[str, Any], done: Replayed) -> Answer | None:
        instance = {name: flight[name] for name in self._schema.asked}
        moment = flight[MOMENT].isoformat()
        body = {
            "instances": [{**instance, MOMENT: moment}],
            "user": self._terms.user_prefix + flight[ID].partition("-")[0],
            "tags": {"flight": flight[ID], "simulated_at": moment},
        }
        done.sent += 1
        try:
            said = await desk.send(f"predict/{self._terms.alias}", body)
            return Answer(
                flight_id=flight[ID],
                request_id=said["id"],
                probability=float(said["predictions"][0]["probability"]),
                version=said["version"],
                features=said["features"][0],
            )
        except (AskFailed, KeyError, IndexError, TypeError) as error:
            self._note(done, error)
            return None

    async def _tell(self, desk: Desk, moment: datetime, done: Replayed) -> None:
        """Labels that are known by `moment`, the oldest first."""
        while self._due and self._due[0][0] <= moment:
            known = [
                heapq.heappop(self._due)
                for _ in range(self._terms.budget.at_once)
                if self._due and self._due[0][0] <= moment
            ]
            await asyncio.gather(*(self._label(desk, *one[1:], done) for one in known))

    async def _label(self, desk: Desk, request_id: str, late: bool, done: Replayed) -> None:
        about = {"request_id": request_id, "metric_name": LABEL, "value": late}
        try:
            await desk.send("feedback", about)
            done.labels += 1
        except AskFailed as error:
            self._note(done, error)

    @staticmethod
    def _note(done: Replayed, error: Exception) -> None:
        done.failed += 1
        if len(done.reasons) < SHOWN_REASONS:
            done.reasons.append(f"{type(error).__name__}: {error}")
