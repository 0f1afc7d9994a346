"""Snapshots' part of lineage: the data sets that were made of each.

snapshot ◀─ dataset
"""

import re
from collections.abc import Iterable, Iterator

from sqlalchemy import Text, select, type_coerce
from sqlalchemy.orm import Session

from gateway.database import Database
from gateway.lineage import Node, Relations
from pipelines.lineage_nodes import node_of
from pipelines.tables import DatasetRow

SNAPSHOT, RELATION = "snapshot", "frozen from"
ID = re.compile(r"[0-9a-f]{32}")


class SnapshotLinks:
    """Links between snapshots and data sets, as the manifests of these have them."""

    def __init__(self, database: Database):
        self._database = database

    def named(self, identifier: str) -> Iterable[Node]:
        """The snapshot of that id, if a data set was made of it."""
        with self._database.session() as session:
            return [_node(row) for row in _made_of(session, identifier)][:1]

    def described(self, node: Node) -> Node:
        """A snapshot with its source and period."""
        return next(iter(self.named(node.id)), node) if node.kind == SNAPSHOT else node

    def causes(self, node: Node) -> Relations:
        """The snapshot of a data set."""
        if node.kind != "dataset":
            return []
        with self._database.session() as session:
            row = session.get(DatasetRow, node.id)
            known = row is not None and row.manifest.get("snapshot_id")
            return [(RELATION, _node(row))] if row is not None and known else []

    def effects(self, node: Node) -> Relations:
        """The data sets of a snapshot."""
        if node.kind != SNAPSHOT:
            return []
        with self._database.session() as session:
            return [(RELATION, node_of(row)) for row in _made_of(session, node.id)]


def _made_of(session: Session, snapshot_id: str) -> Iterator[DatasetRow]:
    if not ID.fullmatch(snapshot_id):
        return iter(())
    written = type_coerce(DatasetRow.manifest, Text)
    named = written.contains(f'"snapshot_id":"{snapshot_id}"')
    return iter(session.scalars(select(DatasetRow).where(named).order_by(DatasetRow.created_at)))


def _node(row: DatasetRow) -> Node:
    told = {name: row.manifest.get(name) for name in ("source", "since", "until")}
    return Node(SNAPSHOT, row.manifest["snapshot_id"], details=told)
