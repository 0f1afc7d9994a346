"""The registry's aliases as KServe InferenceServices: `python -m deploy.reconcile`.

What the champion is, and what is tried beside it, is in the state database; here each alias of
`kubeflow.inference_services` is brought to that: the champion's `storageUri`, or the challenger's
with its `canaryTrafficPercent`; KServe keeps the rest of the traffic on what it rolled out before.

Invariants: a challenger is applied only where the champion was rolled out whole before it. What
does not get ready in time goes back to what last did, with an audit row, and is not tried again
unless somebody says so. The audit trail is the only memory; a run that finds all as it should be
sends nothing. What was ready and is no longer is told, and left to KServe.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from deploy.inference_service import (
    InferenceServices,
    Object,
    Served,
    Standing,
    changes,
    is_canary,
    manifest,
    standing,
    uri_of,
)
from gateway.audit import AuditRow, Change, record
from gateway.database import Database
from pipelines.champion import CHALLENGER, champion_of, find_version, model_experiments
from pipelines.cluster import InferenceService, Kubeflow
from pipelines.json_server import ServerAway, ServerRefused
from pipelines.tables import ExperimentRow

READY, REVERTED = "serving.ready", "serving.reverted"
POLL_SECONDS = 2.0

Say = Callable[[str], None]


class NotServed(RuntimeError):
    """An InferenceService is not as it should be; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What serves an alias: `whole` alone, or the rest of the traffic beside `canary`."""

    alias: str
    whole: Served
    canary: Served | None = None

    @property
    def final(self) -> Served:
        """What the InferenceService says in the end."""
        return self.canary or self.whole


@dataclass(frozen=True, slots=True)
class Orders:
    """How a run goes about it.

    Attributes:
        dry: show what would be changed, change nothing.
        retry: also what was tried and went back.
        poll_seconds: between two looks at one that is to get ready.
    """

    actor: str
    dry: bool = False
    retry: bool = False
    poll_seconds: float = POLL_SECONDS


class Reconciler:
    """Brings the InferenceServices of one namespace to what the registry says."""

    def __init__(
        self, database: Database, plan: Kubeflow, services: InferenceServices, orders: Orders
    ):
        self._database = database
        self._plan = plan
        self._services = services
        self._orders = orders

    async def run(self, say: Say) -> bool:
        """Every alias once. True if all is as it should be; what is not was said."""
        with self._database.session() as session:
            targets = targets_of(session, self._plan)
        for alias in self._plan.inference_services.keys() - {one.alias for one in targets}:
            say(f"{alias}: no version is champion yet, and no base_storage_uri is given")
        well = True
        for target in targets:
            try:
                await self._bring(target, say)
            except (NotServed, ServerAway, ServerRefused) as error:
                say(f"{target.alias}: {error}")
                well = False
        return well

    async def _bring(self, target: Target, say: Say) -> None:
        plan, name = self._plan_of(target)
        live = await self._services.find(name)
        steps = [target.final]
        if target.canary is not None and not self._rolled_out(target, name, live):
            steps.insert(0, target.whole)
        for served in steps:
            wanted = manifest(name, self._plan.kubernetes.namespace, plan, served)
            diff = list(changes(live, wanted))
            last = self._last(name)
            if not diff and last is not None and last.action == READY and _is(last, served):
                _require_ready(live, name, served)
                say(f"{target.alias}: {name} serves {served}, nothing to change")
                continue
            self._require_untried(last, served, name)
            if self._orders.dry:
                say("\n".join([f"{target.alias}: {name} would serve {served}", *diff]))
                continue
            before = live
            if diff:
                live = await self._services.apply(wanted)
                say(f"{target.alias}: {name} is to serve {served}")
            live = await self._settle(target, name, served, before if diff else None)
            say(f"{target.alias}: {name} is ready with {served}")

    async def _settle(
        self, target: Target, name: str, served: Served, before: Object | None
    ) -> Object:
        """Wait until it is ready, and write that down; else go back."""
        plan, _ = self._plan_of(target)
        until = time.monotonic() + plan.ready_within
        while True:
            live, found = await self._look(name, before)
            if found.ready and live is not None:
                self._note(READY, name, target, served, uri_of(before), found.said)
                return live
            if found.failed is not None:
                await self._go_back(target, name, served, found.failed)
            if time.monotonic() > until:
                late = f"not ready within {plan.ready_within:g} s: {found.said}"
                await self._go_back(target, name, served, late)
            await asyncio.sleep(self._orders.poll_seconds)

    async def _look(self, name: str, before: Object | None) -> tuple[Object | None, Standing]:
        try:
            live = await self._services.find(name)
        except ServerAway as error:
            return None, Standing(False, None, str(error), None)
        if live is None:
            raise NotServed(f"{name} was deleted meanwhile; the next run makes it anew")
        return live, standing(live, before)

    async def _go_back(self, target: Target, name: str, served: Served, why: str) -> None:
        """Apply what was last ready, and write that down. Raises NotServed, always."""
        plan, _ = self._plan_of(target)
        good = target.whole if served.percent is not None else self._last_whole(name)
        if good is None or good.uri == served.uri:
            self._note(
                REVERTED, name, target, served, None, f"{why}; there is nothing to go back to"
            )
            raise NotServed(f"{name}: {served} is {why}; there is nothing to go back to")
        wanted = manifest(name, self._plan.kubernetes.namespace, plan, good)
        await self._services.apply(wanted)
        self._note(REVERTED, name, target, served, good.uri, why)
        raise NotServed(f"{name}: {served} is {why}; it went back to {good}")

    def _require_untried(self, last: AuditRow | None, served: Served, name: str) -> None:
        """NotServed if it was the last thing that was tried, and went back."""
        if self._orders.retry or last is None or last.action != REVERTED or not _is(last, served):
            return
        raise NotServed(
            f"{name}: {served} went back at {last.ts.isoformat(timespec='seconds')} "
            f"({last.reason}) and is not tried again without --retry"
        )

    def _rolled_out(self, target: Target, name: str, live: Object | None) -> bool:
        """Whether what is not the canary's goes to `target.whole`."""
        if live is None:
            return False
        good = self._last_whole(name)
        if good is None:
            return uri_of(live) == target.whole.uri and not is_canary(live)
        return good.uri == target.whole.uri and (
            is_canary(live) or uri_of(live) == target.whole.uri
        )

    def _plan_of(self, target: Target) -> tuple[InferenceService, str]:
        plan = self._plan.inference_services[target.alias]
        return plan, plan.name or target.alias

    def _subject(self, name: str) -> str:
        return f"inference_service:{self._plan.kubernetes.namespace}/{name}"

    def _last(self, name: str) -> AuditRow | None:
        rows = self._trail(name, (READY, REVERTED))
        return rows[0] if rows else None

    def _last_whole(self, name: str) -> Served | None:
        """What had all of its traffic last, and was ready."""
        for row in self._trail(name, (READY,)):
            after = row.after or {}
            if after.get("percent") is None:
                return Served(after.get("version"), str(after["uri"]))
        return None

    def _trail(self, name: str, actions: tuple[str, ...]) -> list[AuditRow]:
        query = (
            select(AuditRow)
            .where(AuditRow.subject == self._subject(name), AuditRow.action.in_(actions))
            .order_by(AuditRow.id.desc())
        )
        with self._database.session() as session:
            return list(session.scalars(query))

    def _note(
        self, action: str, name: str, target: Target, served: Served, other: str | None, why: str
    ) -> None:
        tried = {"version": served.version, "uri": served.uri, "percent": served.percent}
        change = Change(
            actor=self._orders.actor,
            action=action,
            subject=self._subject(name),
            reason=why,
            before={"uri": other} if action == READY else tried,
            after=tried if action == READY else {"uri": other},
            evidence={"alias": target.alias},
        )
        with self._database.transaction() as session:
            record(session, change)


def _require_ready(live: Object | None, name: str, served: Served) -> None:
    """NotServed if what was ready when it was rolled out is not ready now."""
    found = standing(live or {}, None)
    if not found.ready:
        raise NotServed(f"{name}: {served} was ready, and is not now: {found.said}")


def targets_of(session: Session, plan: Kubeflow) -> list[Target]:
    """What should serve each alias, by the promotions and the experiments under way."""
    tried = {row.alias: row for row in model_experiments(session) if row.version is not None}
    found = []
    for alias, service in plan.inference_services.items():
        champion = champion_of(session, alias)
        name = champion.name_or(alias)
        running = tried.get(alias)
        rest = champion.version
        if running is not None and running.version == champion.version:
            rest = champion.previous  # a watch on the winner: some users have the former one still
        whole = _served(session, service, name, rest)
        canary = None
        if running is not None:
            canary = _served(session, service, running.name, running.version, _percent(running))
        if whole is not None:
            found.append(Target(alias, whole, canary))
    return found


def _served(
    session: Session,
    service: InferenceService,
    name: str,
    version: str | None,
    percent: int | None = None,
) -> Served | None:
    if version is None:
        uri = service.base_storage_uri
        return None if uri is None else Served(None, uri, percent)
    row = find_version(session, name, version)
    if row is None:
        return None
    return Served(version, service.uri(name, version, row.served_name), percent)


def _percent(running: ExperimentRow) -> int:
    """The challenger's share, as KServe takes it: a whole number from 1 to 99."""
    weights = {arm["variant"]["name"]: float(arm["weight"]) for arm in running.arms}
    share = 100 * weights[CHALLENGER] / sum(weights.values())
    return min(max(round(share), 1), 99)


def _is(row: AuditRow, served: Served) -> bool:
    said = (row.after if row.action == READY else row.before) or {}
    return (said.get("uri"), said.get("percent")) == (served.uri, served.percent)


if __name__ == "__main__":
    from deploy.commands.reconcile import app

    app()
