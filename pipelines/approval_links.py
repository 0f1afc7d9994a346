"""Approvals' part of lineage: who asked for leave, on which evidence, and the move that it became.

experiment, verdict, model_version ◀─ approval ◀─ promotion
"""

from collections.abc import Iterable, Iterator

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from gateway.database import Database
from gateway.lineage import Node, Relations
from gateway.request_log import LogReader
from pipelines.lineage_nodes import node_of
from pipelines.tables import ApprovalRow, PromotionRow

APPROVAL = "approval"
DETAILS = ("alias", "state", "asked_by", "asked_for", "decided_by", "reason")


class ApprovalLinks:
    """Links of approvals; the log has none."""

    def __init__(self, database: Database, _reader: LogReader | None = None):
        self._database = database

    def named(self, identifier: str) -> Iterable[Node]:
        """An approval by its id."""
        if "\x00" in identifier:
            return []
        with self._database.session() as session:
            row = session.get(ApprovalRow, identifier.lower())
            return [] if row is None else [_node(row)]

    def described(self, node: Node) -> Node:
        """An approval with its details."""
        return next(iter(self.named(node.id)), node) if node.kind == APPROVAL else node

    def causes(self, node: Node) -> Relations:
        """What a request rests on and is for; the grant that a promotion came of."""
        if node.kind not in (APPROVAL, "promotion"):
            return []
        with self._database.session() as session:
            return list(_causes(session, node))

    def effects(self, node: Node) -> Relations:
        """The promotion that it became; requests that rest on an experiment, verdict or version."""
        with self._database.session() as session:
            return list(_effects(session, node))


def _node(row: ApprovalRow) -> Node:
    details = {
        **{name: getattr(row, name) for name in DETAILS},
        "created_at": row.created_at.isoformat(),
        "ended_at": None if row.ended_at is None else row.ended_at.isoformat(),
    }
    return Node(APPROVAL, row.approval_id, details=details)


def _causes(session: Session, node: Node) -> Relations:
    if node.kind == "promotion":
        yield from _approvals(session, "granted by", ApprovalRow.promotion_id == node.id)
        return
    row = session.get(ApprovalRow, node.id)
    if row is None:
        return
    for kind, identifier in (("experiment", row.experiment_id), ("verdict", row.verdict_id)):
        if identifier is not None:
            yield "asked because of", Node(kind, identifier)
    yield "asked for", Node("model_version", f"{row.name}/{row.version}")


def _effects(session: Session, node: Node) -> Relations:
    name, _, version = node.id.rpartition("/")
    resting: dict[str, tuple[str, ColumnElement[bool]]] = {
        "experiment": ("asked because of", ApprovalRow.experiment_id == node.id),
        "verdict": ("asked because of", ApprovalRow.verdict_id == node.id),
        "model_version": (
            "asked for",
            (ApprovalRow.name == name) & (ApprovalRow.version == version),
        ),
    }
    if node.kind in resting:
        yield from _approvals(session, *resting[node.kind])
    if node.kind == APPROVAL:
        row = session.get(ApprovalRow, node.id)
        move = None if row is None else session.get(PromotionRow, row.promotion_id or "")
        if move is not None:
            yield "granted by", node_of(move)


def _approvals(
    session: Session, relation: str, condition: ColumnElement[bool]
) -> Iterator[tuple[str, Node]]:
    rows = session.scalars(select(ApprovalRow).where(condition).order_by(ApprovalRow.approval_id))
    return ((relation, _node(row)) for row in rows.all())
