"""Triggers: stored verdicts start what the rules say.

First a row is written (`trigger_event`), once for a verdict, a rule and an action, with the reason;
then it is carried out. Whoever is killed in between finds the row and goes on. So:

- a message is sent at least once; its header `x-llmops-event` is the same each time, and PagerDuty
  knows incidents by a key, so a repeated one changes nothing;
- a command is started at most once: its row says `sent` before the command runs;
- a rule fires at most once per subject within its cool-down; what it holds back is a row as well;
- an incident is resolved by the first later verdict that is well, after its trigger was sent.

Messages go to configured hosts alone; redirects are not followed. What fails for a reason that may
pass (no connection, 429, 5xx) is sent again, later each time.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import aiohttp
import orjson
import uuid_utils
from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.records import Verdict
from evals.verdicts import VerdictRow, find_verdict, verdict_of
from gateway.database import Database, now
from gateway.settings import Settings
from pipelines.tables import TriggerEventRow
from pipelines.trigger_messages import RESOLVE, TRIGGER, pagerduty, signed, slack
from pipelines.trigger_rules import Rule, Triggers

PENDING, SENT, FAILED, HELD_BACK = "pending", "sent", "failed", "held_back"
EVENT = "x-llmops-event"
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 900.0
CALL_SECONDS = 10.0
ANSWER_CHARACTERS = 300
_log = logging.getLogger(__name__)

Start = Callable[[Rule, Verdict], None]


class Undeliverable(RuntimeError):
    """A message that no attempt can bring to its receiver."""


class Later(RuntimeError):
    """A message was not taken for a reason that may pass. `seconds`: as the receiver asked."""

    def __init__(self, message: str, seconds: float = 0.0):
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Message:
    """Where a message goes, and what it is."""

    url: str
    content: dict[str, object]


class Trigger:
    """The rules of one home.

    Args:
        start: begins a rule's command; must not wait for its end.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        triggers: Triggers,
        start: Start,
        clock: Callable[[], datetime] = now,
    ):
        self._database = database
        self._settings = settings
        self._triggers = triggers
        self._start = start
        self._now = clock
        self._seen: set[tuple[str, str]] = set()  # rules and verdicts that are done with

    async def step(self) -> list[str]:
        """Look at the verdicts that came in, carry out what is due; says what was done."""
        if not self._triggers.rules:
            return []
        with self._database.transaction() as session:
            done, seen = self._note(session)
        self._seen = seen  # only now is it sure that what they made is written
        return done + await self._carry_out()

    def _note(self, session: Session) -> tuple[list[str], set[tuple[str, str]]]:
        """Write what the rules make of verdicts that were not looked at yet."""
        oldest = self._now() - timedelta(seconds=self._triggers.look_back)
        query = select(VerdictRow).where(VerdictRow.created_at >= oldest)
        verdicts = session.scalars(query.order_by(VerdictRow.verdict_id)).all()
        noted, seen = [], set()
        for rule in self._triggers.rules:
            for row in verdicts:
                seen.add((rule.name, row.verdict_id))
                if (rule.name, row.verdict_id) not in self._seen:
                    noted += self._apply(session, rule, verdict_of(row))
        return noted, seen

    def _apply(self, session: Session, rule: Rule, verdict: Verdict) -> list[str]:
        why = rule.when.fits(verdict)
        action = TRIGGER
        before = _last(session, rule.name, verdict)
        if why is None:
            well = rule.when.is_over(verdict) if rule.pagerduty is not None else None
            if well is None or before is None or before.action == RESOLVE:
                return []
            why, action = well, RESOLVE
        if _is_noted(session, rule.name, verdict, action):
            return []
        state = PENDING
        triggered = _last(session, rule.name, verdict, action=TRIGGER)
        if action == TRIGGER and triggered is not None:
            again = triggered.verdict_at + timedelta(seconds=rule.cooldown)
            if verdict.created_at < again:
                state = HELD_BACK
                why += f"; held back until {again.isoformat(timespec='seconds')} (cool-down)"
        session.add(self._row(rule, verdict, action, state, why))
        session.flush()
        return [f"{rule.name}: {action} {state}: {why}"]

    def _row(
        self, rule: Rule, verdict: Verdict, action: str, state: str, why: str
    ) -> TriggerEventRow:
        moment = self._now()
        return TriggerEventRow(
            event_id=str(uuid_utils.uuid7()),
            verdict_id=verdict.verdict_id,
            rule=rule.name,
            subject=verdict.subject,
            action=action,
            state=state,
            reason=why,
            attempts=0,
            verdict_at=verdict.created_at,
            created_at=moment,
            next_at=moment,
            ended_at=moment if state == HELD_BACK else None,
        )

    async def _carry_out(self) -> list[str]:
        """Every pending event that is due; of a rule and subject one after the other."""
        query = select(TriggerEventRow).where(TriggerEventRow.state == PENDING)
        with self._database.session() as session:
            pending = session.scalars(query.order_by(TriggerEventRow.event_id)).all()
        done, waiting = [], set()
        for event in pending:
            key = (event.rule, event.subject)
            if key not in waiting and event.next_at <= self._now():
                done.append(await self._attempt(event))
            if event.state == PENDING:
                waiting.add(key)
        return done

    async def _attempt(self, event: TriggerEventRow) -> str:
        rule = next((one for one in self._triggers.rules if one.name == event.rule), None)
        if rule is None:
            return self._end(event, FAILED, "the rule is no longer in the configuration")
        with self._database.session() as session:
            verdict = find_verdict(session, event.verdict_id)
        assert verdict is not None  # the row refers to it
        if rule.command is not None:
            said = self._end(event, SENT, f"started: llmops {' '.join(rule.command)}")
            self._start(rule, verdict)
            return said
        try:
            answer = await self._send(event, self._message(rule, verdict, event))
        except Undeliverable as error:
            return self._end(event, FAILED, str(error))
        except Later as error:
            return self._postpone(event, error)
        return self._end(event, SENT, answer)

    def _message(self, rule: Rule, verdict: Verdict, event: TriggerEventRow) -> Message:
        if rule.pagerduty is not None:
            key = self._secret(rule.pagerduty.routing_key_env)
            severity = rule.pagerduty.severity
            content = pagerduty(verdict, rule.name, event.action, key, severity)
            return Message(rule.pagerduty.url, content)
        assert rule.webhook is not None
        url = rule.webhook.url or self._secret(rule.webhook.url_env or "")
        if not self._triggers.allows(url):
            raise Undeliverable(f"{rule.webhook.url_env}: its host is not among triggers.hosts")
        return Message(url, slack(verdict, rule.name, event.reason))

    def _secret(self, name: str) -> str:
        value = self._settings.secret_value(name)
        if value is None:
            raise Later(f"the environment variable {name} is not set")
        return value

    async def _send(self, event: TriggerEventRow, message: Message) -> str:
        body = orjson.dumps(message.content)
        stamp = int(datetime.now(UTC).timestamp())
        headers = {
            "content-type": "application/json",
            EVENT: event.event_id,
            **signed(body, self._settings.webhook_secret(), stamp),
        }
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    message.url, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                said = (await answer.content.read(ANSWER_CHARACTERS)).decode(errors="replace")
                told = f"{answer.status} {said}".strip()
                asked = answer.headers.get("retry-after", "")
        except TimeoutError as error:
            raise Later(f"no answer within {CALL_SECONDS:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Later(f"{type(error).__name__}: {error}") from error
        if answer.status in (408, 429) or answer.status >= 500:
            raise Later(told, float(asked) if asked.isdecimal() else 0.0)
        if answer.status >= 300:
            raise Undeliverable(told)
        return told

    def _postpone(self, event: TriggerEventRow, error: Later) -> str:
        attempts = event.attempts + 1
        if attempts >= self._triggers.attempts:
            return self._end(event, FAILED, f"given up after {attempts} attempts: {error}")
        pause = min(FIRST_PAUSE_SECONDS * 2**event.attempts, LONGEST_PAUSE_SECONDS)
        pause = min(max(pause, error.seconds), LONGEST_PAUSE_SECONDS)
        with self._database.transaction() as session:
            row = session.get_one(TriggerEventRow, event.event_id)
            row.attempts, row.answer = attempts, str(error)
            row.next_at = self._now() + timedelta(seconds=pause)
        return f"{event.rule}: {event.action} again in {pause:g} s: {error}"

    def _end(self, event: TriggerEventRow, state: str, answer: str) -> str:
        with self._database.transaction() as session:
            row = session.get_one(TriggerEventRow, event.event_id)
            row.state, row.answer, row.ended_at = state, answer, self._now()
            row.attempts = event.attempts + 1
        event.state = state
        return f"{event.rule}: {event.action} {state}: {answer}"


def events(database: Database, limit: int = 20) -> Sequence[TriggerEventRow]:
    """The newest events, newest first."""
    query = select(TriggerEventRow).order_by(TriggerEventRow.event_id.desc()).limit(limit)
    with database.session() as session:
        return session.scalars(query).all()


def _is_noted(session: Session, rule: str, verdict: Verdict, action: str) -> bool:
    query = select(TriggerEventRow.event_id).where(
        TriggerEventRow.verdict_id == verdict.verdict_id,
        TriggerEventRow.rule == rule,
        TriggerEventRow.action == action,
    )
    return session.scalars(query).first() is not None


def _last(
    session: Session, rule: str, verdict: Verdict, *, action: str | None = None
) -> TriggerEventRow | None:
    """The newest event of the rule on the verdict's subject that an earlier verdict made."""
    query = select(TriggerEventRow).where(
        TriggerEventRow.rule == rule,
        TriggerEventRow.subject == verdict.subject,
        TriggerEventRow.state != HELD_BACK,
        TriggerEventRow.verdict_id < verdict.verdict_id,
    )
    if action is not None:
        query = query.where(TriggerEventRow.action == action)
    return session.scalars(query.order_by(TriggerEventRow.verdict_id.desc()).limit(1)).first()
