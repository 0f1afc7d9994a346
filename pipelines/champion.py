"""The champion of an alias: which model version answers outside of experiments, and since when.

The state database is the truth. Promotions are a stack: `promote` puts a version on top, `rollback`
goes back to one below. The alias's split names the champion's adapter, MLflow's aliases follow.

Invariants: whoever moves a champion or begins or ends an experiment calls `hold` first, so these
changes happen one after another, each whole. A split without an experiment has one arm, `champion`.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uuid_utils
from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import Change, record
from gateway.database import Conflict, Database, next_version, now
from gateway.splits import find_split, put_split
from gateway.variants import PROMPT_SPLIT, Arm, Split, Variant
from pipelines.registry_records import note_move
from pipelines.tables import ExperimentRow, ModelVersionRow, PromotionRow

CHAMPION, CHALLENGER = "champion", "challenger"
PROMOTE, ROLLBACK = "promote", "rollback"
MOVING, DONE = "moving", "done"
RUNNING = "running"
BASE = "base"
SALT_BYTES = 16


class Loader(Protocol):
    """Brings adapters onto every replica of an engine."""

    async def load(self, adapter: str, path: Path, within: float = ...) -> object:
        """Return once every replica serves `adapter`, also if it did before.

        Raises: RolloutFailed.
        """


@dataclass(frozen=True, slots=True)
class Services:
    """What moving traffic needs: the state database and the engine behind the alias. `plain`:
    whether the engine answers without any version, as one with a base model does."""

    database: Database
    replicas: Loader
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Champion:
    """Who answers an alias outside of experiments.

    Attributes:
        version: model version; None is the plain base model.
        previous: the version that a rollback goes to; None is the base model.
        can_go_back: whether there is anything below.
        last: the newest promotion or rollback, if there was any.
    """

    alias: str
    version: str | None
    previous: str | None
    can_go_back: bool
    last: PromotionRow | None

    def name_or(self, other: str) -> str:
        """The registered model that it is a version of; `other` before the first promotion."""
        return other if self.last is None else self.last.name

    def require_name(self, name: str) -> None:
        """Conflict if a version of another registered model answers the alias."""
        if self.version is not None and self.name_or(name) != name:
            raise Conflict(
                f"{self.alias} is answered by {self.name_or(name)} version {self.version}; an "
                f"alias has one registered model: roll back to the base model before {name} "
                "takes it"
            )


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an alias's champion that has been decided.

    Attributes:
        kind: `promote` or `rollback`.
        evidence: what the audit trail is told beside the ids.
    """

    kind: str
    alias: str
    name: str
    to_version: str | None
    actor: str
    reason: str | None
    experiment_id: str | None = None
    verdict_id: str | None = None
    evidence: Mapping[str, Any] | None = None


def hold(session: Session) -> None:
    """Wait for others' changes of champions and experiments, and keep them waiting until commit.

    SQLite lets one transaction write at a time anyway; PostgreSQL needs the row's lock.
    """
    next_version(session)


def champion_of(session: Session, alias: str) -> Champion:
    """Who is champion of `alias` now, from its promotions."""
    query = select(PromotionRow).where(PromotionRow.alias == alias)
    moves = list(session.scalars(query.order_by(PromotionRow.promotion_id)))
    stack: list[str | None] = [moves[0].from_version if moves else None]
    for move in moves:
        if move.kind == ROLLBACK and move.to_version in stack:
            del stack[_last_index(stack, move.to_version) + 1 :]
        else:
            stack.append(move.to_version)
    return Champion(
        alias=alias,
        version=stack[-1],
        previous=stack[-2] if len(stack) > 1 else None,
        can_go_back=len(stack) > 1,
        last=moves[-1] if moves else None,
    )


def champion_name(database: Database, alias: str) -> str | None:
    """What answers `alias` outside of experiments, by its served name; None: no version."""
    with database.session() as session:
        split = find_split(session, alias)
    if split is None:
        return None
    arms = {arm.variant.name: arm.variant for arm in split.arms}
    return arms["champion"].adapter if "champion" in arms else split.arms[0].variant.adapter


def find_version(session: Session, name: str, version: str | None) -> ModelVersionRow | None:
    """The row of a model version, if there is one."""
    return None if version is None else session.get(ModelVersionRow, (name, version))


def served_name_of(session: Session, name: str, version: str | None) -> str | None:
    """What a model version is served by; None for the plain model."""
    row = find_version(session, name, version)
    return None if row is None else row.served_name


def running_experiments(session: Session) -> list[ExperimentRow]:
    """All experiments under way, oldest first."""
    query = select(ExperimentRow).where(ExperimentRow.state == RUNNING)
    return list(session.scalars(query.order_by(ExperimentRow.experiment_id)))


def model_experiments(session: Session) -> list[ExperimentRow]:
    """Those under way that try a model's version; the others try a prompt's."""
    running = running_experiments(session)
    return [row for row in running if not row.alias.startswith(PROMPT_SPLIT)]


def running_experiment(session: Session, alias: str) -> ExperimentRow | None:
    """The experiment under way on `alias`, if there is one."""
    return next((row for row in running_experiments(session) if row.alias == alias), None)


def give_all_traffic(session: Session, alias: str, adapter: str | None) -> None:
    """Make the alias's split one arm, `champion`, with `adapter` (None: the plain model)."""
    before = find_split(session, alias)
    salt = new_salt() if before is None else before.salt
    put_split(session, Split(alias, (Arm(Variant(CHAMPION, adapter=adapter), 1.0),), None, salt))


def move_champion(session: Session, move: Move) -> PromotionRow:
    """Move champion and traffic in the caller's transaction, with its audit row.

    The row is `moving` until MLflow's aliases have followed. The caller has called `hold` and has
    checked that the move may be made.
    """
    before = champion_of(session, move.alias)
    adapter = served_name_of(session, move.name, move.to_version)
    row = PromotionRow(
        promotion_id=str(uuid_utils.uuid7()),
        kind=move.kind,
        alias=move.alias,
        name=move.name,
        from_version=before.version,
        to_version=move.to_version,
        experiment_id=move.experiment_id,
        verdict_id=move.verdict_id,
        actor=move.actor,
        reason=move.reason,
        state=MOVING,
        created_at=now(),
    )
    session.add(row)
    note_move(session, row)
    give_all_traffic(session, move.alias, adapter)
    record(
        session,
        Change(
            actor=move.actor,
            action=f"champion.{move.kind}",
            subject=f"alias:{move.alias}",
            reason=move.reason,
            before={
                "version": before.version,
                "adapter": served_name_of(session, move.name, before.version),
            },
            after={"version": move.to_version, "adapter": adapter},
            evidence={
                "promotion_id": row.promotion_id,
                "name": move.name,
                "experiment_id": move.experiment_id,
                "verdict_id": move.verdict_id,
                **(move.evidence or {}),
            },
        ),
    )
    session.flush()
    return row


def new_salt() -> str:
    """Key of a new assignment of users to arms."""
    return secrets.token_hex(SALT_BYTES)


def _last_index(stack: list[str | None], version: str | None) -> int:
    return len(stack) - 1 - stack[::-1].index(version)
