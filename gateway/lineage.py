"""Lineage: what a thing was made with and what came of it, from any id, as nodes and edges.

An edge runs from an effect to its cause (`request --used--> key`). From where it starts a walk
follows causes to their causes and effects to their effects, never back: a request leads to its key,
but not on to all other requests of that key.

A thing may be linked with very many by one relation (a data set is made from thousands of pieces of
feedback). The first `FOLLOWED` of them are followed; the others are taken in when everything that
is followed has been, without details, as far as `NODES_AT_MOST` allows; and all are counted.

Every part of the project brings its own `Links`; `gateway.lineage_links` has those of the gateway.
Nothing is registered anywhere: who asks passes in what may be followed.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

from gateway.errors import NotFound

NODES_AT_MOST = 1000
FOLLOWED = 20


@dataclass(frozen=True, slots=True)
class Node:
    """A thing with an id. `tenant` is part of its name where ids are a tenant's own (episodes).

    Attributes:
        kind: such as `request`, `key`, `feedback`.
        details: what is worth showing of it; plain values, no secret.
    """

    kind: str
    id: str
    tenant: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Unique among the nodes of a lineage."""
        owner = f"{self.tenant}/" if self.tenant else ""
        return f"{self.kind}:{owner}{self.id}"


@dataclass(frozen=True, slots=True)
class Edge:
    """`effect` --relation--> `cause`, by the nodes' names."""

    effect: str
    relation: str
    cause: str


Relations = Iterable[tuple[str, Node]]


class Links(Protocol):
    """What one part of the project knows of lineage."""

    def named(self, identifier: str) -> Iterable[Node]:
        """The things that `identifier` may stand for."""

    def described(self, node: Node) -> Node:
        """`node` with its details, if this part has them; other parts know it by its id alone."""

    def causes(self, node: Node) -> Relations:
        """What `node` was made with or from: relation and cause. All there are, the most telling
        first; those beyond `FOLLOWED` need no details."""

    def effects(self, node: Node) -> Relations:
        """What came of `node`: relation (read from the effect) and effect; ordered alike."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """More things of one kind than are followed, linked with one node by one relation.

    Attributes:
        node: name of the one they are linked with.
        to_causes: whether they are its causes, else its effects.
        total: how many there are; shown: how many of them are among the lineage's nodes.
    """

    node: str
    relation: str
    kind: str
    to_causes: bool
    total: int
    shown: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Nodes by name, and edges; `starts` are the names of what was asked for.

    Attributes:
        truncated: whether there is more than `NODES_AT_MOST` let in.
    """

    starts: tuple[str, ...]
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    bundles: tuple[Bundle, ...] = ()
    truncated: bool = False

    def causes(self, name: str) -> list[Edge]:
        """Edges from this node to its causes."""
        return [edge for edge in self.edges if edge.effect == name]

    def effects(self, name: str) -> list[Edge]:
        """Edges from this node's effects to it."""
        return [edge for edge in self.edges if edge.cause == name]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "starts": list(self.starts),
            "nodes": [
                {
                    "name": node.name,
                    "kind": node.kind,
                    "id": node.id,
                    "tenant": node.tenant,
                    "details": dict(node.details),
                }
                for node in self.nodes.values()
            ],
            "edges": [asdict(edge) for edge in self.edges],
            "bundles": [asdict(bundle) for bundle in self.bundles],
            "truncated": self.truncated,
        }


@dataclass(slots=True)
class _Group:
    """What one node is linked with by one relation, of one kind."""

    node: Node
    relation: str
    kind: str
    to_causes: bool
    others: dict[str, Node] = field(default_factory=dict)

    def edge(self, other: Node) -> Edge:
        effect, cause = (self.node, other) if self.to_causes else (other, self.node)
        return Edge(effect.name, self.relation, cause.name)


class _Walk:
    """Nodes and edges as they are found."""

    def __init__(self, links: Sequence[Links]):
        self.links = links
        self.nodes: dict[str, Node] = {}
        self.edges: dict[Edge, None] = {}
        self.wide: list[_Group] = []
        self.truncated = False

    def follow(self, starts: Iterable[Node], *, to_causes: bool) -> None:
        """Take in everything that is reached from `starts` in one direction."""
        queue = deque(starts)
        visited: set[str] = set()
        while queue:
            node = queue.popleft()
            if node.name in visited:
                continue
            visited.add(node.name)
            for part in self.links:
                node = part.described(node)
            self.nodes[node.name] = node
            for group in self._groups(node, to_causes):
                queue.extend(self._take(group, list(group.others.values())[:FOLLOWED]))
                if len(group.others) > FOLLOWED:
                    self.wide.append(group)

    def bundles(self) -> tuple[Bundle, ...]:
        """Take in what was not followed, as far as there is room, of each group alike much."""
        rests = [list(group.others.values())[FOLLOWED:] for group in self.wide]
        for row in zip_longest(*rests):
            for group, other in zip(self.wide, row, strict=True):
                if other is not None:
                    self._take(group, [other])
        return tuple(self._bundle(group) for group in self.wide)

    def _bundle(self, group: _Group) -> Bundle:
        shown = sum(group.edge(other) in self.edges for other in group.others.values())
        name, total = group.node.name, len(group.others)
        return Bundle(name, group.relation, group.kind, group.to_causes, total, shown)

    def _take(self, group: _Group, others: Sequence[Node]) -> list[Node]:
        """Those of `others` that there is room for."""
        taken = []
        for other in others:
            if other.name not in self.nodes and len(self.nodes) >= NODES_AT_MOST:
                self.truncated = True
                continue
            self.nodes.setdefault(other.name, other)
            self.edges[group.edge(other)] = None
            taken.append(other)
        return taken

    def _groups(self, node: Node, to_causes: bool) -> Iterable[_Group]:
        groups: dict[tuple[str, str], _Group] = {}
        for part in self.links:
            for relation, other in part.causes(node) if to_causes else part.effects(node):
                group = groups.setdefault(
                    (relation, other.kind), _Group(node, relation, other.kind, to_causes)
                )
                group.others.setdefault(other.name, other)
        return groups.values()


def lineage(identifier: str, links: Sequence[Links]) -> Lineage:
    """Everything that is linked with `identifier`, at most `NODES_AT_MOST` nodes.

    Raises:
        NotFound: no part knows the id.
    """
    starts = [node for part in links for node in part.named(identifier)]
    if not starts:
        raise NotFound(
            f"nothing is known of {identifier[:256]!r}: not a request, feedback, key, team or "
            "episode of this installation, nor anything that was made from them",
            param="id",
            code="id_not_found",
        )
    walk = _Walk(links)
    walk.follow(starts, to_causes=True)
    walk.follow(starts, to_causes=False)
    bundles = walk.bundles()
    names = tuple(dict.fromkeys(node.name for node in starts))
    return Lineage(names, walk.nodes, tuple(walk.edges), bundles, walk.truncated)
