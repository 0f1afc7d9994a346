"""Delivers the outbox for the Kubeflow Model Registry.

- A record is sent at least once and stored once: the registry is asked for it first.
- Nothing is ever given up. A registry that is away is left alone for a while, longer each time; a
  record that it refuses waits by itself, the others go on.
- The champion that a registered model shows is the one of the moment, whatever the order in which
  the records went out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.database import Database, now
from pipelines.champion import BASE, CHAMPION, champion_of
from pipelines.json_server import ServerAway, ServerRefused
from pipelines.kubeflow_registry import Entity, KubeflowRegistry
from pipelines.promotion import PREVIOUS
from pipelines.registry_records import PENDING, REGISTER, SENT
from pipelines.tables import ModelVersionRow, PromotionRow, RegistryRecordRow, TrainingRow

FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 300.0
REFUSED_PAUSE_SECONDS = 900.0
STEP_SECONDS = 20.0
BATCH = 100


class Gone(RuntimeError):
    """What a record tells of is not in the state database any more."""


@dataclass(frozen=True, slots=True)
class Told:
    """A record with the rows that it tells of."""

    record: RegistryRecordRow
    version: ModelVersionRow | None
    training: TrainingRow | None
    move: PromotionRow | None
    champions: dict[str, str | None] = field(default_factory=dict)


class Recorder:
    """Brings the records of one home to one registry."""

    def __init__(
        self,
        database: Database,
        registry: KubeflowRegistry,
        clock: Callable[[], datetime] = now,
    ):
        self._database = database
        self._registry = registry
        self._now = clock
        self._rest_until = datetime.min.replace(tzinfo=UTC)
        self._away = 0

    async def step(self) -> list[str | BaseException]:
        """Send what is due; says what was done and what failed."""
        if self._now() < self._rest_until:
            return []
        done: list[str | BaseException] = []
        until = time.monotonic() + STEP_SECONDS
        for record in self._due():
            if time.monotonic() > until:
                break
            try:
                with self._database.session() as session:
                    told = _rows(session, record)
                await self._tell(told)
            except ServerAway as error:
                self._rest(record, error)
                done.append(error)
                break
            except (ServerRefused, Gone) as error:
                self._postpone(record, error)
                done.append(error)
            else:
                self._sent(record)
                self._away = 0
                done.append(f"{record.kind} {record.record_id} is in the model registry")
        return done

    def _due(self) -> list[RegistryRecordRow]:
        query = (
            select(RegistryRecordRow)
            .where(RegistryRecordRow.state == PENDING, RegistryRecordRow.next_at <= self._now())
            .order_by(RegistryRecordRow.created_at, RegistryRecordRow.record_id)
            .limit(BATCH)
        )
        with self._database.session() as session:
            return list(session.scalars(query))

    async def _tell(self, told: Told) -> None:
        model = await self._registry.model(told.record.name)
        version = await self._version(model, told)
        if told.record.kind == REGISTER:
            return
        assert told.move is not None  # `_rows` has seen to it
        move = told.move
        await self._registry.document(
            version, f"llmops/move/{move.promotion_id}", _sentence(move), _moved(move)
        )
        await self._registry.describe(model, told.champions)

    async def _version(self, model: Entity, told: Told) -> Entity | None:
        """The version that a record is about, with its files; None for the base model."""
        row, training = told.version, told.training
        if row is None or training is None:
            return None
        external_id = f"llmops/{row.name}/{row.version}/{row.training_id}"
        made = await self._registry.version(
            model, external_id, row.version, "llmops", _ids(row, training)
        )
        await self._registry.files(made, f"{external_id}/files", _files(row, training))
        return made

    def _sent(self, record: RegistryRecordRow) -> None:
        with self._database.transaction() as session:
            row = session.get_one(RegistryRecordRow, record.record_id)
            row.state, row.answer, row.ended_at = SENT, None, self._now()
            row.attempts += 1

    def _rest(self, record: RegistryRecordRow, error: ServerAway) -> None:
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(self._away, 30), LONGEST_PAUSE_SECONDS)
        self._away += 1
        self._rest_until = self._now() + timedelta(seconds=pause)
        self._note(record, str(error), None)

    def _postpone(self, record: RegistryRecordRow, error: Exception) -> None:
        self._note(record, str(error), self._now() + timedelta(seconds=REFUSED_PAUSE_SECONDS))

    def _note(self, record: RegistryRecordRow, answer: str, again: datetime | None) -> None:
        with self._database.transaction() as session:
            row = session.get_one(RegistryRecordRow, record.record_id)
            row.attempts, row.answer = row.attempts + 1, answer
            row.next_at = row.next_at if again is None else again


def _rows(session: Session, record: RegistryRecordRow) -> Told:
    """What a record tells of. Raises Gone."""
    move = None
    version = record.version
    champions: dict[str, str | None] = {}
    if record.kind != REGISTER:
        move = session.get(PromotionRow, record.record_id)
        if move is None:
            raise Gone(f"promotion {record.record_id} is not in the state database")
        version = move.to_version or move.from_version
        champion = champion_of(session, move.alias)
        if champion.name_or(move.name) == move.name:
            champions = {CHAMPION: champion.version or BASE, PREVIOUS: champion.previous}
    if version is None:
        return Told(record, None, None, move, champions)
    row = session.get(ModelVersionRow, (record.name, version))
    training = None if row is None else session.get(TrainingRow, row.training_id)
    if row is None or training is None:
        raise Gone(f"{record.name} version {version} is not in the state database")
    return Told(record, row, training, move, champions)


def _ids(row: ModelVersionRow, training: TrainingRow) -> dict[str, str | None]:
    return {
        "served_name": row.served_name,
        "digest": training.digest if row.served_name == training.served_name else None,
        "training_id": row.training_id,
        "dataset_id": training.dataset_id,
        "verdict_id": row.verdict_id,
        "git_sha": training.git_sha,
        "registered_at": row.created_at.isoformat(),
    }


def _files(row: ModelVersionRow, training: TrainingRow) -> dict[str, str]:
    adapted = bool(training.base_model)
    return {
        "name": f"{row.name}-{row.version}",
        "uri": f"models:/{row.name}/{row.version}",
        "modelFormatName": "lora" if adapted else "mlflow",
        "modelSourceKind": "mlflow",
        "modelSourceClass": "run",
        "modelSourceId": row.training_id,
        "modelSourceName": f"{row.name}/{row.version}",
    }


def _moved(move: PromotionRow) -> dict[str, str | None]:
    return {
        "kind": move.kind,
        "alias": move.alias,
        "from_version": move.from_version or BASE,
        "to_version": move.to_version or BASE,
        "actor": move.actor,
        "reason": move.reason,
        "experiment_id": move.experiment_id,
        "verdict_id": move.verdict_id,
        "moved_at": move.created_at.isoformat(),
    }


def _sentence(move: PromotionRow) -> str:
    return (
        f"{move.kind} of {move.alias} from version {move.from_version or BASE} to "
        f"{move.to_version or BASE} by {move.actor}: {move.reason}"
    )
