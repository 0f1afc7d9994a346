"""An office for tests of triggers: a database, a receiver, rules, and a clock that stands."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import uuid_utils

from evals.records import Decision, MetricResult, Verdict
from evals.verdicts import add_verdict
from gateway.database import Database
from gateway.settings import Settings
from pipelines.tables import TriggerEventRow
from pipelines.trigger import Trigger, events
from pipelines.trigger_rules import Rule, Triggers
from tests.pipelines.webhook_receiver import Receiver

START = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
SUBJECT = "drift:assistant@3"


def metric(name: str, passed: bool | None) -> MetricResult:
    return MetricResult(name, 0.1, 0.3, 0.2, 0.1, 0.3, 500, passed)


def verdict(
    decision: Decision, minutes: float, *metrics: MetricResult, subject: str = SUBJECT
) -> Verdict:
    """One that was made `minutes` after the start."""
    moment = START + timedelta(minutes=minutes)
    seconds = int(moment.timestamp())
    return Verdict(
        verdict_id=str(uuid_utils.uuid7(timestamp=seconds, nanos=0)),
        subject=subject,
        baseline="reference:abc",
        decision=decision,
        metrics=metrics or (metric("answer_refused", decision is Decision.HOLD),),
        reasons=("answer_refused: share 0.300 against 0.100",),
        evidence={"report": "/home/reports/one.html"},
        created_at=moment,
    )


def alert(minutes: float, *metrics: MetricResult, subject: str = SUBJECT) -> Verdict:
    return verdict(Decision.ALERT, minutes, *metrics, subject=subject)


def well(minutes: float, *metrics: MetricResult) -> Verdict:
    return verdict(Decision.HOLD, minutes, *metrics)


def undecided(minutes: float) -> Verdict:
    """A look with too few rows."""
    return replace(well(minutes), metrics=())


@dataclass
class Office:
    """A database, a receiver, rules, and a clock that stands until it is moved."""

    database: Database
    settings: Settings
    receiver: Receiver
    rules: list[dict[str, Any]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    attempts: int = 8
    busy: set[str] = field(default_factory=set)  # rules whose command runs
    moment: datetime = START
    started: list[tuple[str, str]] = field(default_factory=list)
    trigger: Trigger | None = None

    def restart(self) -> None:
        """As after a kill: nothing is remembered but what the database says."""
        given = Triggers.model_validate(
            {
                "hosts": self.hosts or [self.receiver.host],
                "rules": self.rules,
                "attempts": self.attempts,
            }
        )
        self.trigger = Trigger(
            self.database, self.settings, given, self.start, self.is_free, lambda: self.moment
        )

    def store(self, *verdicts: Verdict) -> None:
        with self.database.transaction() as session:
            for one in verdicts:
                add_verdict(session, one)

    def step(self, minutes: float | None = None) -> list[str]:
        if minutes is not None:
            self.moment = START + timedelta(minutes=minutes)
        if self.trigger is None:
            self.restart()
        assert self.trigger is not None
        return asyncio.run(self.trigger.step())

    def rows(self) -> list[TriggerEventRow]:
        """Oldest first."""
        return sorted(events(self.database, 1000), key=lambda row: row.event_id)

    def states(self) -> list[tuple[str, str]]:
        return [(row.action, row.state) for row in self.rows()]

    def start(self, rule: Rule, verdict: Verdict) -> None:
        self.started.append((rule.name, verdict.verdict_id))

    def is_free(self, rule: Rule) -> bool:
        return rule.name not in self.busy


WEBHOOK = {"name": "tell", "webhook": {"url_env": "HOOK"}, "when": {"subject": "drift:*"}}


def pagerduty_rule(receiver: Receiver) -> dict[str, Any]:
    return {
        "name": "page",
        "pagerduty": {"routing_key_env": "PAGER", "url": f"http://{receiver.host}/v2/enqueue"},
    }
