"""The lifecycle's part of lineage: data sets, trainings, verdicts, versions, runs, experiments,
promotions.

Effects point to causes, so that from feedback one follows the effects down to the promotion, and
from a promotion the causes up to the first feedback:

    feedback, request ◀─ dataset ◀─ training ◀─ verdict ◀─ model_version ◀─ adapter ◀─ request
                            ▲─ run                              ▲─ experiment ◀─ verdict, request
    any verdict ◀─ trigger_event                                ▲─ promotion

A run worked on a data set and made what came after it. What a candidate was compared with is in the
verdict's details and is not followed: it would lead through all generations before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.database import Database
from gateway.lineage import Node, Relations
from gateway.lineage_links import COLUMNS, RECENT, request_node
from gateway.request_log import LogReader
from gateway.variants import PROMPT_SPLIT
from pipelines.lineage_nodes import node_of
from pipelines.tables import (
    DatasetExampleRow,
    DatasetRow,
    ExperimentRow,
    ModelVersionRow,
    PromotionRow,
    RunRow,
    TrainingRow,
    TriggerEventRow,
)

BASE = "base"
BY_ID = ("dataset", "training", "verdict", "run", "experiment", "promotion", "trigger_event")
URI = "models:/"
ROLLBACK = "rollback"
IN_LOG = MappingProxyType({"adapter": "answered with", "experiment": "took part in"})


class PipelineLinks:
    """Links from the lifecycle's tables. With `reader`, also to requests of adapters, experiments.

    One query for each relation of a node; none for an example of a data set.
    """

    def __init__(self, database: Database, reader: LogReader | None = None):
        self._database = database
        self._reader = reader

    def named(self, identifier: str) -> Iterable[Node]:
        """What has this id; a version by `name/version` or `models:/name/version`, an adapter by
        the name that it is served by, and a model by its alias."""
        if "\x00" in identifier:
            return []
        with self._database.session() as session:
            return list(_named(session, identifier))

    def described(self, node: Node) -> Node:
        """A node of the lifecycle with its details."""
        if node.details or node.kind not in _FIND:
            return node
        with self._database.session() as session:
            return next(iter(_FIND[node.kind](session, node.id)), node)

    def causes(self, node: Node) -> Relations:
        """What it was made with or from, or decided by."""
        if node.kind not in _CAUSES:
            return []
        with self._database.session() as session:
            return list(_CAUSES[node.kind](session, node))

    def effects(self, node: Node) -> Relations:
        """What was made with or from it; of an adapter or experiment also its latest requests."""
        found: list[tuple[str, Node]] = []
        if node.kind in _EFFECTS:
            with self._database.session() as session:
                found += _EFFECTS[node.kind](session, node)
        return found + list(self._requests(node))

    def _requests(self, node: Node) -> Relations:
        if self._reader is None or node.kind not in IN_LOG:
            return []
        rows = self._reader.rows(f"{node.kind} = ?", [node.id], columns=COLUMNS, limit=RECENT)
        return [(IN_LOG[node.kind], request_node(row)) for row in rows]


def _named(session: Session, identifier: str) -> Iterator[Node]:
    for kind in BY_ID:
        yield from _FIND[kind](session, identifier.lower())
    for kind in ("adapter", "model"):
        yield from _FIND[kind](session, identifier)
    yield from _version(session, identifier.removeprefix(URI))


def _nodes(session: Session, query: Select[Any]) -> Iterator[Node]:
    return (node_of(row) for row in session.scalars(query))


def _version(session: Session, identifier: str) -> Iterator[Node]:
    name, slash, version = identifier.rpartition("/")
    row = session.get(ModelVersionRow, (name, version)) if slash else None
    return iter([] if row is None else [node_of(row)])


def _adapter(session: Session, name: str) -> Iterator[Node]:
    for path in (
        select(ModelVersionRow.path).where(ModelVersionRow.served_name == name),
        select(TrainingRow.path).where(TrainingRow.served_name == name),
    ):
        found = session.scalars(path.limit(1)).first()
        if found is not None:
            yield Node("adapter", name, details={"path": found})
            return


def _model(session: Session, alias: str) -> Iterator[Node]:
    """An alias of the gateway that the lifecycle has to do with, and where it points now."""
    moves = select(PromotionRow).where(PromotionRow.alias == alias)
    last = session.scalars(moves.order_by(PromotionRow.promotion_id.desc()).limit(1)).first()
    if last is not None:
        champion = BASE if last.to_version is None else f"{last.name}/{last.to_version}"
        details = {"champion": champion, "since": last.created_at.isoformat()}
        yield Node("model", alias, details=details)
        return
    tried = select(ExperimentRow.alias).where(ExperimentRow.alias == alias).limit(1)
    if session.scalars(tried).first() is not None:
        yield Node("model", alias, details={"champion": BASE})


def _dataset_causes(session: Session, node: Node) -> Relations:
    """All its feedback and requests by id alone: one query, however many they are."""
    query = (
        select(DatasetExampleRow.feedback_id, DatasetExampleRow.request_id)
        .where(DatasetExampleRow.dataset_id == node.id)
        .order_by(DatasetExampleRow.position)
    )
    for feedback_id, request_id in session.execute(query):
        yield "made from", Node("feedback", feedback_id)
        yield "made from", Node("request", request_id)


def _example_effects(session: Session, node: Node) -> Relations:
    column = {
        "feedback": DatasetExampleRow.feedback_id,
        "request": DatasetExampleRow.request_id,
    }[node.kind]
    with_it = select(DatasetExampleRow.dataset_id).where(column == node.id)
    query = select(DatasetRow).where(DatasetRow.dataset_id.in_(with_it))
    yield from (
        ("made from", one) for one in _nodes(session, query.order_by(DatasetRow.created_at))
    )


def _dataset_effects(session: Session, node: Node) -> Relations:
    trainings = select(TrainingRow).where(TrainingRow.dataset_id == node.id)
    for one in _nodes(session, trainings.order_by(TrainingRow.created_at)):
        yield "trained on", one
    runs = select(RunRow).where(RunRow.dataset_id == node.id).order_by(RunRow.run_id)
    yield from (("worked on", one) for one in _nodes(session, runs))


def _training_causes(session: Session, node: Node) -> Relations:
    if node.details:
        yield "trained on", Node("dataset", node.details["dataset_id"])
        yield from _made_by(session, RunRow.training_id == node.id)


def _training_effects(session: Session, node: Node) -> Relations:
    if node.details:
        yield "made by", Node("adapter", node.details["served_name"])
    verdicts = select(VerdictRow).where(VerdictRow.subject == node.details.get("served_name"))
    for row in session.scalars(verdicts.order_by(VerdictRow.verdict_id)):
        if _judged_training(row.evidence) in (None, node.id) and not _measured_in(session, row):
            yield "judged", node_of(row)
    versions = select(ModelVersionRow).where(ModelVersionRow.training_id == node.id)
    yield from (("trained by", one) for one in _nodes(session, versions))


def _verdict_causes(session: Session, node: Node) -> Relations:
    row = session.get(VerdictRow, node.id)
    if row is None:
        return
    experiments = _measured_in(session, row)
    yield from (("measured in", one) for one in experiments)
    if not experiments:
        training = _judged_training(row.evidence)
        by_name = TrainingRow.served_name == row.subject
        known = TrainingRow.training_id == training if training else by_name
        yield from (("judged", one) for one in _nodes(session, select(TrainingRow).where(known)))
    yield from _made_by(session, RunRow.verdict_id == node.id)


def _verdict_effects(session: Session, node: Node) -> Relations:
    versions = select(ModelVersionRow).where(ModelVersionRow.verdict_id == node.id)
    yield from (("let through by", one) for one in _nodes(session, versions))
    moves = select(PromotionRow).where(PromotionRow.verdict_id == node.id)
    yield from (("decided by", one) for one in _nodes(session, moves))
    events = select(TriggerEventRow).where(TriggerEventRow.verdict_id == node.id)
    events = events.order_by(TriggerEventRow.event_id)
    yield from (("triggered by", one) for one in _nodes(session, events))


def _trigger_event_causes(session: Session, node: Node) -> Relations:
    row = session.get(TriggerEventRow, node.id)
    return [] if row is None else [("triggered by", Node("verdict", row.verdict_id))]


def _version_causes(session: Session, node: Node) -> Relations:
    details = node.details
    if details:
        yield "trained by", Node("training", details["training_id"])
        if details["verdict_id"]:
            yield "let through by", Node("verdict", details["verdict_id"])
        of_it = (RunRow.name == details["name"]) & (RunRow.version == details["version"])
        yield from _made_by(session, of_it)


def _version_effects(session: Session, node: Node) -> Relations:
    name, _, version = node.id.rpartition("/")
    if node.details:
        yield "is", Node("adapter", node.details["served_name"])
    tried = select(ExperimentRow).where(
        ExperimentRow.name == name, ExperimentRow.version == version
    )
    tried = tried.order_by(ExperimentRow.experiment_id)
    yield from (("tried", one) for one in _nodes(session, tried))
    moves = select(PromotionRow).where(
        PromotionRow.name == name,
        or_(
            PromotionRow.to_version == version,
            (PromotionRow.kind == ROLLBACK) & (PromotionRow.from_version == version),
        ),
    )
    for row in session.scalars(moves.order_by(PromotionRow.promotion_id)):
        moved_to = row.to_version == version
        yield "moved to" if moved_to else "moved away from", node_of(row)


def _adapter_causes(session: Session, node: Node) -> Relations:
    for relation, table in (("is", ModelVersionRow), ("made by", TrainingRow)):
        query = select(table).where(table.served_name == node.id).order_by(table.created_at)
        yield from ((relation, one) for one in _nodes(session, query))


def _adapter_effects(session: Session, node: Node) -> Relations:
    """Experiments in which it was the candidate, and promotions that gave it the traffic."""
    versions = select(ModelVersionRow.version).where(
        ModelVersionRow.served_name == node.id, ModelVersionRow.name == ExperimentRow.name
    )
    tried = or_(ExperimentRow.version.in_(versions), ExperimentRow.version.is_(None))
    query = select(ExperimentRow).where(tried).order_by(ExperimentRow.experiment_id)
    for one in _nodes(session, query):
        if one.details["candidate"] == node.id:
            yield "answered by", one
    moves = select(PromotionRow).join(
        ModelVersionRow,
        (ModelVersionRow.name == PromotionRow.name)
        & (ModelVersionRow.version == PromotionRow.to_version),
    )
    moves = moves.where(ModelVersionRow.served_name == node.id).order_by(PromotionRow.promotion_id)
    yield from (("gave traffic to", one) for one in _nodes(session, moves))


def _run_causes(session: Session, node: Node) -> Relations:
    if node.details.get("dataset_id"):
        yield "worked on", Node("dataset", node.details["dataset_id"])


def _run_effects(session: Session, node: Node) -> Relations:
    details = node.details
    for kind in ("training", "verdict"):
        if details.get(f"{kind}_id"):
            yield "made by", Node(kind, details[f"{kind}_id"])
    if details.get("version"):
        yield "made by", Node("model_version", f"{details['name']}/{details['version']}")


def _experiment_causes(session: Session, node: Node) -> Relations:
    details = node.details
    if not details or details["alias"].startswith(PROMPT_SPLIT):  # see `pipelines.prompt_links`
        return
    yield "tried on", Node("model", details["alias"])
    if details["version"]:
        yield "tried", Node("model_version", f"{details['name']}/{details['version']}")
    if details["candidate"]:
        yield "answered by", Node("adapter", details["candidate"])


def _experiment_effects(session: Session, node: Node) -> Relations:
    if node.details.get("verdict_id"):
        yield "measured in", Node("verdict", node.details["verdict_id"])
    moves = select(PromotionRow).where(PromotionRow.experiment_id == node.id)
    yield from (("decided by", one) for one in _nodes(session, moves))


def _promotion_causes(session: Session, node: Node) -> Relations:
    details = node.details
    if not details:
        return
    for kind in ("experiment", "verdict"):
        if details[f"{kind}_id"]:
            yield "decided by", Node(kind, details[f"{kind}_id"])
    if details["to_version"]:
        yield "moved to", Node("model_version", f"{details['name']}/{details['to_version']}")
        adapter = select(ModelVersionRow.served_name).where(
            ModelVersionRow.name == details["name"],
            ModelVersionRow.version == details["to_version"],
        )
        yield from (("gave traffic to", Node("adapter", one)) for one in session.scalars(adapter))
    if details["kind"] == ROLLBACK and details["from_version"]:
        left = f"{details['name']}/{details['from_version']}"
        yield "moved away from", Node("model_version", left)
    yield "moved", Node("model", details["alias"])


def _model_effects(session: Session, node: Node) -> Relations:
    """The newest first: what an alias was moved to, and what was tried on it."""
    moves = select(PromotionRow).where(PromotionRow.alias == node.id)
    moves = moves.order_by(PromotionRow.promotion_id.desc())
    yield from (("moved", one) for one in _nodes(session, moves))
    tried = select(ExperimentRow).where(ExperimentRow.alias == node.id)
    tried = tried.order_by(ExperimentRow.experiment_id.desc())
    yield from (("tried on", one) for one in _nodes(session, tried))


def _made_by(session: Session, condition: Any) -> Relations:
    runs = select(RunRow).where(condition).order_by(RunRow.run_id)
    return [("made by", one) for one in _nodes(session, runs)]


def _judged_training(evidence: Mapping[str, Any]) -> str | None:
    training: str | None = evidence.get("training_id")
    return training


def _measured_in(session: Session, row: VerdictRow) -> list[Node]:
    """The experiments that this verdict is on."""
    told = row.evidence.get("experiment_id")
    query = select(ExperimentRow).where(
        or_(ExperimentRow.verdict_id == row.verdict_id, ExperimentRow.experiment_id == told)
    )
    return list(_nodes(session, query))


def _by_key(table: type[Any]) -> Callable[[Session, str], Iterator[Node]]:
    def find(session: Session, identifier: str) -> Iterator[Node]:
        row = session.get(table, identifier)
        return iter([] if row is None else [node_of(row)])

    return find


_FIND: Mapping[str, Callable[[Session, str], Iterator[Node]]] = MappingProxyType(
    {
        "dataset": _by_key(DatasetRow),
        "training": _by_key(TrainingRow),
        "verdict": _by_key(VerdictRow),
        "run": _by_key(RunRow),
        "experiment": _by_key(ExperimentRow),
        "promotion": _by_key(PromotionRow),
        "trigger_event": _by_key(TriggerEventRow),
        "model_version": _version,
        "adapter": _adapter,
        "model": _model,
    }
)
_CAUSES: Mapping[str, Callable[[Session, Node], Relations]] = MappingProxyType(
    {
        "dataset": _dataset_causes,
        "training": _training_causes,
        "verdict": _verdict_causes,
        "model_version": _version_causes,
        "adapter": _adapter_causes,
        "run": _run_causes,
        "experiment": _experiment_causes,
        "promotion": _promotion_causes,
        "trigger_event": _trigger_event_causes,
    }
)
_EFFECTS: Mapping[str, Callable[[Session, Node], Relations]] = MappingProxyType(
    {
        "feedback": _example_effects,
        "request": _example_effects,
        "dataset": _dataset_effects,
        "training": _training_effects,
        "verdict": _verdict_effects,
        "model_version": _version_effects,
        "adapter": _adapter_effects,
        "run": _run_effects,
        "experiment": _experiment_effects,
        "model": _model_effects,
    }
)
