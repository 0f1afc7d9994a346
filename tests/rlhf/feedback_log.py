"""A request log and feedback on it, for tests: what a gateway, its shipper and its users leave."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from deploy.migrations import upgrade
from gateway.configuration import Metric
from gateway.database import open_database
from gateway.feedback import FeedbackStore, NewFeedback
from gateway.request_log import LogReader
from tests.spooled_requests import final, record, shipper_of, write_segment

METRICS = {
    "helpful": Metric(type="boolean"),
    "rating": Metric(type="float", minimum=1, maximum=5),
}


def question(text: str, system: str = "Extract the record.") -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def answer(text: str | None, **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}


@dataclass
class FeedbackLog:
    """`ask` writes a request, `rate` and `show` give feedback on it; `ship` moves all so far."""

    home: Path
    waiting: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        url = f"sqlite:///{self.home / 'state.db'}"
        upgrade(url)
        self.database = open_database(url)
        self.feedback = FeedbackStore(self.database, METRICS)
        self.segments = 0

    def ask(
        self,
        text: str = "Ann is a nurse in Oslo.",
        replied: Any = "a chatty answer",
        *,
        request: Any = None,
        **fields: Any,
    ) -> str:
        """Log a request and its answer; returns its id."""
        body = {"model": "extractor", "messages": question(text)} if request is None else request
        reply = answer(replied) if isinstance(replied, str | None) else replied
        one = record(**({"model": "extractor", "user": "ann"} | fields))
        bodies = [b if isinstance(b, bytes) else orjson.dumps(b) for b in (body, reply)]
        self.waiting.append(final(one, *bodies))
        return one.request_id

    def give(self, request_id: str, metric: str, value: Any, tenant: str = "acme") -> str:
        new = NewFeedback(tenant, "key-1", metric, value, reference=f"chatcmpl-{request_id}")
        return self.feedback.add(new)

    def rate(self, request_id: str, helpful: bool = True) -> str:
        return self.give(request_id, "helpful", helpful)

    def show(self, request_id: str, value: Any) -> str:
        return self.give(request_id, "demonstration", value)

    def write(self) -> None:
        """Put what was asked so far into the spool."""
        self.segments += 1
        write_segment(self.home / "spool", *self.waiting, sequence=self.segments)
        self.waiting = []

    def ship(self) -> None:
        """Put what was asked so far into the table."""
        self.write()
        shipper_of(self.home).ship()

    def reader(self) -> LogReader:
        """Reads spool and table; whatever was asked is in one of them."""
        if self.waiting:
            self.write()
        return LogReader(self.home / "spool", str(self.home / "log" / "requests"))
