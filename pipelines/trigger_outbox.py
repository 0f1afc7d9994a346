"""What is to be done about events: messages are sent, commands started.

Events of a rule on a subject wait for each other; nobody else waits for them, so a receiver that
does not answer delays nothing but its own.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from evals.records import Verdict
from evals.verdicts import find_verdict
from gateway.database import Database
from gateway.settings import Settings
from pipelines.tables import TriggerEventRow
from pipelines.trigger_call import Later, Message, Undeliverable, body_of, post
from pipelines.trigger_messages import pagerduty, signed, slack
from pipelines.trigger_rules import Rule, Triggers

PENDING, SENT, FAILED, HELD_BACK = "pending", "sent", "failed", "held_back"
EVENT = "x-llmops-event"
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 900.0
TAKEN_PAUSE_SECONDS = 15.0
AT_A_TIME = 16
# What may go wrong about one event, and must not keep the others from being carried out. The
# database is not among it.
MISHAPS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

Start = Callable[[Rule, Verdict], None]


class Outbox:
    """Carries out the events of one home.

    Args:
        start: begins a rule's command; must not wait for its end.
        is_free: whether a rule's command may begin now.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        triggers: Triggers,
        start: Start,
        is_free: Callable[[Rule], bool],
        clock: Callable[[], datetime],
    ):
        self._database = database
        self._settings = settings
        self._triggers = triggers
        self._start = start
        self._is_free = is_free
        self._now = clock

    async def carry_out(self) -> list[str]:
        """Every pending event that is due; says what was done."""
        query = select(TriggerEventRow).where(TriggerEventRow.state == PENDING)
        with self._database.session() as session:
            pending = session.scalars(query.order_by(TriggerEventRow.event_id)).all()
        lanes: dict[tuple[str, str], list[TriggerEventRow]] = {}
        for event in pending:
            lanes.setdefault((event.rule, event.subject), []).append(event)
        places = asyncio.Semaphore(AT_A_TIME)

        async def follow(lane: list[TriggerEventRow]) -> list[str]:
            async with places:
                return await self._follow(lane)

        done = await asyncio.gather(*map(follow, lanes.values()), return_exceptions=True)
        trouble = next((one for one in done if isinstance(one, BaseException)), None)
        if trouble is not None:  # raised when all the others are through
            raise trouble
        return [said for one in done if not isinstance(one, BaseException) for said in one]

    async def _follow(self, lane: list[TriggerEventRow]) -> list[str]:
        """The events of one rule on one subject, up to the first that must wait."""
        done: list[str] = []
        for event in lane:
            if event.next_at <= self._now():
                done += filter(None, [await self._attempt(event)])
            if event.state == PENDING:
                break
        return done

    async def _attempt(self, event: TriggerEventRow) -> str | None:
        rule = next((one for one in self._triggers.rules if one.name == event.rule), None)
        if rule is None:
            return self._end(event, FAILED, "the rule is no longer in the configuration")
        with self._database.session() as session:
            verdict = find_verdict(session, event.verdict_id)
        assert verdict is not None  # the row refers to it
        try:
            if rule.starts:
                return self._begin(event, rule, verdict)
            message = self._message(rule, verdict, event)
        except Later as error:
            return self._postpone(event, error)
        except MISHAPS as error:
            return self._end(event, FAILED, _told(error))
        return await self._send(event, message)

    def _begin(self, event: TriggerEventRow, rule: Rule, verdict: Verdict) -> str | None:
        """Start the rule's command, if there is place for it. Else it waits; a training is left to
        a verdict that comes when the model has been trained, and tried."""
        free = self._is_free(rule)
        if not free and rule.pipeline is not None:
            said = f"a run or an experiment of {rule.pipeline} is under way"
            return self._end(event, HELD_BACK, said)
        if not free:
            return self._wait(event, "waits: a run of this rule is under way")
        command = rule.command_for(verdict)
        said = self._end(event, SENT, f"started: llmops {' '.join(command)}")
        self._start(rule, verdict)
        return said

    def _message(self, rule: Rule, verdict: Verdict, event: TriggerEventRow) -> Message:
        if rule.pagerduty is not None:
            key = self._secret(rule.pagerduty.routing_key_env)
            severity = rule.pagerduty.severity
            content = pagerduty(verdict, rule.name, event.action, key, severity)
            return Message(rule.pagerduty.url, content, (key,))
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
        try:
            body = body_of(message)
            stamp = int(datetime.now(UTC).timestamp())
            headers = {
                "content-type": "application/json",
                EVENT: event.event_id,
                **signed(body, self._settings.webhook_secret(), stamp),
            }
            answer = await post(message, headers, body)
        except Later as error:
            return self._postpone(event, error)
        except MISHAPS as error:
            return self._end(event, FAILED, message.without_secrets(_told(error)))
        return self._end(event, SENT, answer)

    def _postpone(self, event: TriggerEventRow, error: Later) -> str:
        attempts = event.attempts + 1
        if attempts >= self._triggers.attempts:
            return self._end(event, FAILED, f"given up after {attempts} attempts: {error}")
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(event.attempts, 30), LONGEST_PAUSE_SECONDS)
        pause = min(max(pause, error.seconds), LONGEST_PAUSE_SECONDS)
        with self._database.transaction() as session:
            row = session.get_one(TriggerEventRow, event.event_id)
            row.attempts, row.answer = attempts, str(error)
            row.next_at = self._now() + timedelta(seconds=pause)
        return f"{event.rule}: {event.action} again in {pause:g} s: {error}"

    def _wait(self, event: TriggerEventRow, why: str) -> str | None:
        """Look again soon, however often; said once."""
        with self._database.transaction() as session:
            row = session.get_one(TriggerEventRow, event.event_id)
            row.answer = why
            row.next_at = self._now() + timedelta(seconds=TAKEN_PAUSE_SECONDS)
        return None if event.answer == why else f"{event.rule}: {event.action} {why}"

    def _end(self, event: TriggerEventRow, state: str, answer: str) -> str:
        with self._database.transaction() as session:
            row = session.get_one(TriggerEventRow, event.event_id)
            row.state, row.answer, row.ended_at = state, answer, self._now()
            row.attempts = event.attempts + 1
        event.state = state
        return f"{event.rule}: {event.action} {state}: {answer}"


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Undeliverable) else f"{type(error).__name__}: {error}"
