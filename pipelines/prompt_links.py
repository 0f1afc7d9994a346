"""Prompts' part of lineage: versions, and the moves of `production` from the audit trail.

verdict ◀─ prompt_move ─▶ prompt ◀─ experiment, request
                └───────▶ experiment
"""

from collections.abc import Iterable, Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.audit import AuditRow
from gateway.database import Database
from gateway.lineage import Node, Relations
from gateway.lineage_links import COLUMNS, RECENT, request_node
from gateway.prompt_versions import PromptVersionRow, find_version, labels_of, versions_of
from gateway.request_log import LogReader
from gateway.variants import PROMPT_SPLIT
from pipelines.lineage_nodes import node_of
from pipelines.prompt_labels import ACTIONS, EXPERIMENT, VERDICT, moves_of, subject_of
from pipelines.tables import ExperimentRow

PROMPT, MOVE = "prompt", "prompt_move"


class PromptLinks:
    """Links of prompts. With `reader`, also to the latest requests of a version."""

    def __init__(self, database: Database, reader: LogReader | None = None):
        self._database = database
        self._reader = reader

    def named(self, identifier: str) -> Iterable[Node]:
        """A version by `NAME@VERSION`, all of them by `prompt:NAME`, a move by its audit row."""
        if "\x00" in identifier:
            return []
        with self._database.session() as session:
            return list(_named(session, identifier))

    def described(self, node: Node) -> Node:
        """A version or a move with its details."""
        if node.kind not in (PROMPT, MOVE):
            return node
        with self._database.session() as session:
            found = _version(session, node.id) if node.kind == PROMPT else _move(session, node.id)
            return next(found, node)

    def causes(self, node: Node) -> Relations:
        """A move's verdict, experiment and version; what an experiment tried, a verdict judged."""
        with self._database.session() as session:
            return list(_causes(session, node))

    def effects(self, node: Node) -> Relations:
        """Moves that it decided, or that it was moved to; experiments that it was tried in."""
        with self._database.session() as session:
            found = list(_effects(session, node))
        return found + (self._requests(node) if node.kind == PROMPT else [])

    def _requests(self, node: Node) -> list[tuple[str, Node]]:
        if self._reader is None:
            return []
        name, _, version = node.id.rpartition("@")
        rows = self._reader.rows(
            "prompt_name = ? AND prompt_version = ?", [name, version], columns=COLUMNS, limit=RECENT
        )
        return [("rendered from", request_node(row)) for row in rows]


def _named(session: Session, identifier: str) -> Iterator[Node]:
    yield from _move(session, identifier.lower())
    yield from _version(session, identifier)
    if identifier.startswith(PROMPT_SPLIT):
        rows = versions_of(session, identifier.removeprefix(PROMPT_SPLIT))
        yield from (_prompt_node(session, row) for row in rows)


def _version(session: Session, identifier: str) -> Iterator[Node]:
    name, _, version = identifier.rpartition("@")
    row = find_version(session, name, version)
    return iter([] if row is None else [_prompt_node(session, row)])


def _move(session: Session, audit_id: str) -> Iterator[Node]:
    row = session.get(AuditRow, audit_id)
    return iter([] if row is None or row.action not in ACTIONS else [_move_node(row)])


def _prompt_node(session: Session, row: PromptVersionRow) -> Node:
    labels = labels_of(session, row.name)
    named = ", ".join(label for label, version in labels.items() if version == row.version)
    details = {
        "labels": named or None,
        "content_hash": row.content_hash,
        "git_sha": row.git_sha,
        "path": row.path,
        "created_at": row.created_at.isoformat(),
    }
    return Node(PROMPT, f"{row.name}@{row.version}", details=details)


def _move_node(row: AuditRow) -> Node:
    before, after = row.before or {}, row.after or {}
    details = {
        "kind": row.action.partition(".")[2],
        "alias": row.subject,
        "from_version": before.get("version"),
        "to_version": after.get("version"),
        "actor": row.actor,
        "reason": row.reason,
        "created_at": row.ts.isoformat(),
        **{name: (row.evidence or {}).get(name) for name in (EXPERIMENT, VERDICT)},
    }
    return Node(MOVE, row.id, details=details)


def _causes(session: Session, node: Node) -> Relations:
    details = node.details
    alias = str(details.get("alias"))
    if node.kind == MOVE:
        for kind, field in (("experiment", EXPERIMENT), ("verdict", VERDICT)):
            if details.get(field):
                yield "decided by", Node(kind, details[field])
        version = f"{alias.removeprefix(PROMPT_SPLIT)}@{details.get('to_version')}"
        yield from (("moved to", one) for one in _version(session, version))
    elif node.kind == "experiment":
        if details.get("watches"):
            yield "watches", Node("experiment", details["watches"])
        version = f"{alias.removeprefix(PROMPT_SPLIT)}@{details.get('version')}"
        if alias.startswith(PROMPT_SPLIT):
            yield from (("tried", one) for one in _version(session, version))
    elif node.kind == "verdict" and str(details.get("subject")).startswith(PROMPT_SPLIT):
        yield from (("judged", one) for one in _judged(session, str(details["subject"])))


def _effects(session: Session, node: Node) -> Relations:
    if node.kind == PROMPT:
        yield from _version_effects(session, node)
    elif node.kind in ("experiment", "verdict"):
        if node.kind == "experiment":
            yield from _watches(session, node)
        alias = str(node.details.get("alias") or node.details.get("subject"))
        name = alias.removeprefix(PROMPT_SPLIT).partition("@")[0]
        moves = moves_of(session, name) if alias.startswith(PROMPT_SPLIT) else []
        field = EXPERIMENT if node.kind == "experiment" else VERDICT
        for move in moves:
            if (move.evidence or {}).get(field) == node.id:
                yield "decided by", _move_node(move)


def _watches(session: Session, node: Node) -> Relations:
    later = select(ExperimentRow).where(
        ExperimentRow.alias == node.details.get("alias"), ExperimentRow.experiment_id > node.id
    )
    for row in session.scalars(later.order_by(ExperimentRow.experiment_id).limit(1)):
        if row.plan.get("watches") == node.id:
            yield "watches", node_of(row)


def _version_effects(session: Session, node: Node) -> Relations:
    name, _, version = node.id.rpartition("@")
    row = find_version(session, name, version)
    if row is None:
        return
    on_it = select(VerdictRow).where(VerdictRow.subject == subject_of(row.prompt))
    for verdict in session.scalars(on_it.order_by(VerdictRow.verdict_id)):
        yield "judged", node_of(verdict)
    tried = select(ExperimentRow).where(
        ExperimentRow.alias == PROMPT_SPLIT + name, ExperimentRow.version == version
    )
    for experiment in session.scalars(tried.order_by(ExperimentRow.experiment_id)):
        yield "tried", node_of(experiment)
    for move in moves_of(session, name):
        if (move.after or {}).get("version") == version:
            yield "moved to", _move_node(move)


def _judged(session: Session, subject: str) -> Iterator[Node]:
    name, _, digits = subject.removeprefix(PROMPT_SPLIT).partition("@")
    for row in versions_of(session, name):
        if digits and row.content_hash.startswith(digits):
            yield _prompt_node(session, row)
