"""Lineage: what a thing was made with and what came of it, from any id, as nodes and edges.

An edge runs from an effect to its cause (`request --used--> key`). From where it starts a walk
follows causes to their causes and effects to their effects, never back: a request leads to its key,
but not on to all other requests of that key.

Every part of the project brings its own `Links`; `gateway.lineage_links` has those of the gateway.
Nothing is registered anywhere: who asks passes in what may be followed.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import NotFound

NODES_AT_MOST = 1000


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
        """What `node` was made with or from: relation and cause."""

    def effects(self, node: Node) -> Relations:
        """What came of `node`: relation (read from the effect) and effect."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Nodes by name, and edges; `starts` are the names of what was asked for."""

    starts: tuple[str, ...]
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]

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
            "edges": [
                {"effect": edge.effect, "relation": edge.relation, "cause": edge.cause}
                for edge in self.edges
            ],
        }


class _Walk:
    """Nodes and edges as they are found."""

    def __init__(self, links: Sequence[Links]):
        self.links = links
        self.nodes: dict[str, Node] = {}
        self.edges: dict[Edge, None] = {}

    def follow(self, starts: Iterable[Node], *, to_causes: bool) -> None:
        """Take in everything that is reached from `starts` in one direction."""
        queue = deque(starts)
        visited: set[str] = set()
        while queue and len(self.nodes) < NODES_AT_MOST:
            node = queue.popleft()
            if node.name in visited:
                continue
            visited.add(node.name)
            for part in self.links:
                node = part.described(node)
            self.nodes[node.name] = node
            for relation, other in self._next(node, to_causes):
                effect, cause = (node, other) if to_causes else (other, node)
                self.edges[Edge(effect.name, relation, cause.name)] = None
                self.nodes.setdefault(other.name, other)
                queue.append(other)

    def _next(self, node: Node, to_causes: bool) -> Relations:
        for part in self.links:
            yield from part.causes(node) if to_causes else part.effects(node)


def lineage(identifier: str, links: Sequence[Links]) -> Lineage:
    """Everything that is linked with `identifier`, at most about 1000 nodes.

    Raises:
        NotFound: no part knows the id.
    """
    starts = [node for part in links for node in part.named(identifier)]
    if not starts:
        raise NotFound(
            f"nothing is known of {identifier[:256]!r}: not a request, feedback, key, team or "
            "episode of this installation",
            param="id",
            code="id_not_found",
        )
    walk = _Walk(links)
    walk.follow(starts, to_causes=True)
    walk.follow(starts, to_causes=False)
    names = tuple(dict.fromkeys(node.name for node in starts))
    return Lineage(starts=names, nodes=walk.nodes, edges=tuple(walk.edges))
