"""Promotion and rollback of an alias's champion by hand, and MLflow's aliases that follow.

Invariants: the state database is moved first, whole, with its audit row; MLflow's aliases follow
and are brought to what the database says until they agree, however long MLflow is away. A rollback
needs nothing but the database and, unless it goes to the base model, the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from gateway.audit import require_reason
from gateway.database import Conflict, Database
from pipelines.candidate import lineage_of, require_candidate
from pipelines.champion import (
    CHALLENGER,
    CHAMPION,
    DONE,
    MOVING,
    PROMOTE,
    ROLLBACK,
    Champion,
    Move,
    Services,
    champion_of,
    find_version,
    hold,
    model_experiments,
    move_champion,
    running_experiment,
    served_name_of,
)
from pipelines.experiment import stop_running
from pipelines.rollout import RolloutFailed
from pipelines.tables import ModelVersionRow, PromotionRow

PREVIOUS = "previous"
ROLLBACK_SECONDS = 3.0


class Aliases(Protocol):
    """The part of the model registry that follows the champion."""

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """Let `alias` name `version`; None takes the alias away. Again changes nothing."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """An order to make a version champion without an experiment.

    Attributes:
        unjudged: why a version without a passing verdict is promoted all the same, or None.
    """

    alias: str
    name: str
    version: str
    actor: str
    reason: str
    unjudged: str | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """An order to go back to the champion before this one.

    Attributes:
        reason: mandatory: who reads the audit trail wants to know.
        from_version: the champion that is to go, where one was seen; then the order may be given
            again without going back twice. None: whoever it is.
        accept_base: go to the base model if the champion before cannot be loaded.
    """

    alias: str
    actor: str
    reason: str
    from_version: str | None = None
    accept_base: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """What an order came to.

    Attributes:
        promotion: the move; None where only an experiment was ended.
        adapter: what answers from now on; None is the base model.
        stopped: the experiment that ended with it, if one was under way.
        repeated: nothing was changed: it had been done before.
        note: what the caller should be told besides.
    """

    promotion: PromotionRow | None
    adapter: str | None
    stopped: str | None = None
    repeated: bool = False
    note: str | None = None


async def promote(services: Services, order: Promotion) -> Moved:
    """Give all of an alias's traffic to a version. Where it has it already, nothing changes.

    Raises:
        NotFound: no such version.
        Conflict: its lineage has gaps, an experiment is under way, or somebody was faster.
        RolloutFailed: its adapter is not served on every replica.
    """
    require_reason(order.reason)
    with services.database.session() as session:
        before = champion_of(session, order.alias)
        candidate = _promotable(session, order, before)
    if before.version == order.version:
        return Moved(before.last, candidate.served_name, repeated=True)
    await services.replicas.load(candidate.served_name, Path(candidate.path))
    with services.database.transaction() as session:
        hold(session)
        _require_unmoved(session, before)
        candidate = _promotable(session, order, before)
        move = Move(
            kind=PROMOTE,
            alias=order.alias,
            name=order.name,
            to_version=order.version,
            actor=order.actor,
            reason=order.reason,
            verdict_id=candidate.verdict_id,
            evidence={**lineage_of(session, candidate), "unjudged": order.unjudged},
        )
        return Moved(move_champion(session, move), candidate.served_name)


async def rollback(services: Services, order: Rollback) -> Moved:
    """Go back to the champion before this one, and end an experiment that is under way.

    It works with MLflow away, and within five seconds.

    Raises:
        Conflict: there is nothing to go back to, or the champion is not the one that was seen.
        RolloutFailed: the champion before cannot be loaded, and `accept_base` was not said.
    """
    require_reason(order.reason)
    with services.database.session() as session:
        before = champion_of(session, order.alias)
        if _repeated(order, before):
            return Moved(before.last, _served(session, before), repeated=True)
        _require_way_back(session, order, before)
        target = find_version(session, before.name_or(order.alias), before.previous)
    if target is None and before.can_go_back and not services.plain:
        raise Conflict(
            f"{order.alias}: version {before.version} is its first, and below it nothing would "
            "answer; promote another version (or end an experiment: llmops experiment stop)"
        )
    note = await _note_if_lost(services, order, target)
    with services.database.transaction() as session:
        hold(session)
        _require_unmoved(session, before)
        stopped = stop_running(session, order.alias, f"rolled back: {order.reason}", order.actor)
        if not before.can_go_back:
            return Moved(None, _served(session, before), stopped)
        kept = target if note is None else None
        adapter = None if kept is None else kept.served_name
        move = Move(
            kind=ROLLBACK,
            alias=order.alias,
            name=before.name_or(order.alias),
            to_version=None if kept is None else kept.version,
            actor=order.actor,
            reason=order.reason,
            evidence={"stopped_experiment": stopped, "note": note},
        )
        return Moved(move_champion(session, move), adapter, stopped, note=note)


class AliasFollower:
    """Brings MLflow's `champion`, `previous` and `challenger` to what the database says."""

    def __init__(self, database: Database, registry: Aliases):
        self._database = database
        self._registry = registry
        self._told: dict[str, Mapping[str, str | None]] = {}

    def names(self) -> list[str]:
        """Models whose aliases have to be told to MLflow."""
        with self._database.session() as session:
            wanted = wanted_aliases(session)
            moving = {row.name for row in session.scalars(_moving())}
        return [name for name in wanted if name in moving or self._told.get(name) != wanted[name]]

    def follow(self, name: str) -> str:
        """Tell MLflow the aliases of `name`; its promotions are `done` then. Says what was told.

        Raises what the registry raises; the promotions stay `moving`.
        """
        wanted, moving = self._state(name)
        while True:
            for alias, version in wanted.items():
                self._registry.set_alias(name, alias, version)
            again, more = self._state(name)
            if again == wanted:
                break
            wanted, moving = again, more  # it was moved meanwhile: the newest word is the last
        self._told[name] = wanted
        if moving:
            with self._database.transaction() as session:
                for promotion_id in moving:
                    session.get_one(PromotionRow, promotion_id).state = DONE
        told = ", ".join(f"{alias} {version or '-'}" for alias, version in wanted.items())
        return f"{name}: MLflow's aliases are {told}"

    def _state(self, name: str) -> tuple[dict[str, str | None], list[str]]:
        with self._database.session() as session:
            moving = session.scalars(_moving().where(PromotionRow.name == name))
            ids = [row.promotion_id for row in moving]
            return wanted_aliases(session)[name], ids


def follow_up(database: Database, registry: Aliases) -> list[str]:
    """Tell MLflow once what promotions are still moving; says what was told, by model."""
    follower = AliasFollower(database, registry)
    return [follower.follow(name) for name in follower.names()]


def wanted_aliases(session: Session) -> dict[str, dict[str, str | None]]:
    """Each model's aliases as they should be."""
    moves = session.scalars(select(PromotionRow).order_by(PromotionRow.promotion_id))
    aliases = {row.alias: row.name for row in moves}
    wanted: dict[str, dict[str, str | None]] = {}
    for alias, name in aliases.items():
        champion = champion_of(session, alias)
        wanted[name] = {CHAMPION: champion.version, PREVIOUS: champion.previous, CHALLENGER: None}
    for running in model_experiments(session):
        nothing: dict[str, str | None] = {CHAMPION: None, PREVIOUS: None}
        wanted.setdefault(running.name, nothing)[CHALLENGER] = running.version
    return wanted


def _moving() -> Select[PromotionRow]:
    return select(PromotionRow).where(PromotionRow.state == MOVING)


def _promotable(session: Session, order: Promotion, champion: Champion) -> ModelVersionRow:
    candidate = require_candidate(session, order.name, order.version, order.unjudged)
    champion.require_name(order.name)
    running = running_experiment(session, order.alias)
    if running is not None:
        raise Conflict(
            f"{order.alias}: experiment {running.experiment_id} is under way; wait for its end, "
            "or stop it"
        )
    return candidate


def _require_unmoved(session: Session, before: Champion) -> None:
    """Conflict if somebody moved the champion since `before` was read."""
    last = champion_of(session, before.alias).last
    if last is not None and (before.last is None or last.promotion_id != before.last.promotion_id):
        raise Conflict(
            f"{before.alias}: {last.actor} was faster: {last.kind} to version "
            f"{last.to_version or 'base'} ({last.reason}); look, then decide again"
        )


def _require_way_back(session: Session, order: Rollback, champion: Champion) -> None:
    if order.from_version is not None and champion.version != order.from_version:
        raise Conflict(
            f"{order.alias}: its champion is version {champion.version or 'base'}, "
            f"not {order.from_version}; nothing was changed"
        )
    if not champion.can_go_back and running_experiment(session, order.alias) is None:
        raise Conflict(
            f"{order.alias} is at its first champion (the base model): there is nothing to go "
            "back to"
        )


def _repeated(order: Rollback, champion: Champion) -> bool:
    last = champion.last
    return (
        order.from_version is not None
        and last is not None
        and last.kind == ROLLBACK
        and last.from_version == order.from_version
    )


async def _note_if_lost(
    services: Services, order: Rollback, target: ModelVersionRow | None
) -> str | None:
    """None once `target` is served; where it is not, why the base model answers instead."""
    if target is None:
        return None
    path = Path(target.path)
    try:
        await services.replicas.load(target.served_name, path, within=ROLLBACK_SECONDS)
    except RolloutFailed as error:
        if not (order.accept_base and services.plain):
            raise
        return f"{target.served_name} cannot be loaded ({error}): the base model answers"
    return None


def _served(session: Session, champion: Champion) -> str | None:
    return served_name_of(session, champion.name_or(champion.alias), champion.version)
