"""Triggers: stored verdicts start what the rules say.

First a row is written (`trigger_event`), once for a verdict, a rule and an action, with the reason;
then it is carried out. Whoever is killed in between finds the row and goes on. So:

- a message is sent at least once; its header `x-llmops-event` is the same each time, and PagerDuty
  knows incidents by a key, so a repeated one changes nothing;
- a command is started at most once: its row says `sent` before the command runs;
- a rule fires at most once per subject within its cool-down; what it holds back is a row as well.
  Rules that train the same model count as one, and all subjects do: a hundred verdicts are one run.
  A message that was given up holds nothing back, nor does an incident that is resolved;
- an incident is resolved by the first later verdict that is well, after its trigger was sent.

Messages go to configured hosts alone; redirects are not followed. What fails for a reason that may
pass (no connection, 429, 5xx) is sent again, later each time.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

import uuid_utils
from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.records import Verdict
from evals.verdicts import VerdictRow, verdict_of
from gateway.database import Database, now
from gateway.settings import Settings
from pipelines.tables import TriggerEventRow
from pipelines.trigger_messages import RESOLVE, TRIGGER
from pipelines.trigger_outbox import FAILED, HELD_BACK, PENDING, Outbox, Start
from pipelines.trigger_rules import Rule, Triggers

BATCH = 200  # verdicts that are looked at, and committed, together


class Trigger:
    """The rules of one home.

    Args:
        start: begins a rule's command; must not wait for its end.
        is_free: whether a rule's command may begin now; until then its event waits.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        triggers: Triggers,
        start: Start,
        is_free: Callable[[Rule], bool] = lambda _rule: True,
        clock: Callable[[], datetime] = now,
    ):
        self._database = database
        self._triggers = triggers
        self._outbox = Outbox(database, settings, triggers, start, is_free, clock)
        self._now = clock
        self._seen: set[str] = set()  # verdicts that are done with

    async def step(self) -> list[str]:
        """Look at the verdicts that came in, carry out what is due; says what was done."""
        if not self._triggers.rules:
            return []
        recent = self._recent()
        noted: list[str] = []
        unseen = sorted(recent - self._seen)
        for start in range(0, len(unseen), BATCH):
            batch = unseen[start : start + BATCH]
            noted += self._note(batch)
            self._seen.update(batch)  # only now is it sure that what they made is written
            await asyncio.sleep(0)
        self._seen &= recent
        return noted + await self._outbox.carry_out()

    def _recent(self) -> set[str]:
        """Verdicts of the look-back. By id, not by moment: one may be stored after a later one."""
        oldest = self._now() - timedelta(seconds=self._triggers.look_back)
        query = select(VerdictRow.verdict_id).where(VerdictRow.created_at >= oldest)
        with self._database.session() as session:
            return set(session.scalars(query))

    def _note(self, batch: Sequence[str]) -> list[str]:
        """Write what the rules make of these verdicts, oldest first."""
        query = select(VerdictRow).where(VerdictRow.verdict_id.in_(batch))
        with self._database.session() as session:
            rows = session.scalars(query.order_by(VerdictRow.verdict_id))
            verdicts = [verdict_of(row) for row in rows]
            if next(self._events(session, verdicts), None) is None:
                return []  # as nearly always, and nobody was kept from writing
        noted = []
        with self._database.transaction() as session:
            for row in self._events(session, verdicts):
                session.add(row)
                session.flush()  # the next one is judged by it
                noted.append(f"{row.rule}: {row.action} {row.state}: {row.reason}")
        return noted

    def _events(self, session: Session, verdicts: Sequence[Verdict]) -> Iterator[TriggerEventRow]:
        columns = TriggerEventRow.verdict_id, TriggerEventRow.rule, TriggerEventRow.action
        ids = [one.verdict_id for one in verdicts]
        query = select(*columns).where(TriggerEventRow.verdict_id.in_(ids))
        known = {(one.verdict_id, one.rule, one.action) for one in session.execute(query)}
        for verdict in verdicts:
            for rule in self._triggers.rules:
                found = self._judge(session, rule, verdict)
                if found is None:
                    continue
                action, state, why = found
                if (verdict.verdict_id, rule.name, action) not in known:
                    yield self._row(rule, verdict, action, state, why)

    def _judge(self, session: Session, rule: Rule, verdict: Verdict) -> tuple[str, str, str] | None:
        """Action, state and reason of what the rule makes of the verdict, if anything."""
        why = rule.when.fits(verdict)
        if why is None and not (rule.pagerduty is not None and rule.when.may_be_over(verdict)):
            return None
        before = _last(session, self._triggers, rule, verdict)
        if why is None:
            well = None
            if before is not None and before.action == TRIGGER:
                opened, *later = _verdicts(session, before, verdict)
                well = rule.when.is_over(opened, later)
            return None if well is None else (RESOLVE, PENDING, well)
        if before is None or (before.action == RESOLVE and rule.pagerduty is not None):
            return TRIGGER, PENDING, why
        again = before.verdict_at + timedelta(seconds=rule.cooldown)
        if verdict.created_at >= again:
            return TRIGGER, PENDING, why
        until = again.isoformat(timespec="seconds")
        return TRIGGER, HELD_BACK, f"{why}; held back until {until} (cool-down)"

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


def events(database: Database, limit: int = 20) -> Sequence[TriggerEventRow]:
    """The newest events, newest first."""
    query = select(TriggerEventRow).order_by(TriggerEventRow.event_id.desc()).limit(limit)
    with database.session() as session:
        return session.scalars(query).all()


def _last(
    session: Session, triggers: Triggers, rule: Rule, verdict: Verdict
) -> TriggerEventRow | None:
    """The newest event of the rule on the verdict's subject - where it trains a model, of any rule
    that trains it, on any subject - that an earlier verdict made, and that came to something, or
    may still."""
    rivals = triggers.rivals(rule)
    query = select(TriggerEventRow).where(
        TriggerEventRow.rule.in_(rivals or [rule.name]),
        TriggerEventRow.state.not_in((HELD_BACK, FAILED)),
    )
    if rivals:
        query = query.order_by(TriggerEventRow.verdict_at.desc())
    else:
        query = query.where(
            TriggerEventRow.subject == verdict.subject,
            TriggerEventRow.verdict_id < verdict.verdict_id,
        ).order_by(TriggerEventRow.verdict_id.desc())
    return session.scalars(query.limit(1)).first()


def _verdicts(session: Session, event: TriggerEventRow, last: Verdict) -> list[Verdict]:
    """The verdict that made the event, and all on its subject from then up to `last`."""
    query = select(VerdictRow).where(
        VerdictRow.subject == last.subject,
        VerdictRow.verdict_id >= event.verdict_id,
        VerdictRow.verdict_id <= last.verdict_id,
    )
    return [verdict_of(row) for row in session.scalars(query.order_by(VerdictRow.verdict_id))]
