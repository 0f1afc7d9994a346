"""The gateway's own part of lineage: requests, keys, teams, models, targets, prompts, feedback."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select

from gateway.database import Database
from gateway.feedback import UUID, FeedbackRecord, FeedbackStore
from gateway.key_tables import KeyRow, TeamRow
from gateway.lineage import Node, Relations
from gateway.request_log import LogReader, presented

RECENT = 20
REQUEST_DETAILS = (
    "ts", "tenant", "endpoint", "model", "target", "status", "http_status", "error_code",
    "finish_reason", "user", "input_tokens", "output_tokens", "cost_usd", "price_version",
    "latency_ms", "upstream_id", "config_hash",
)  # fmt: skip
COLUMNS = (
    "request_id", "key_id", "team", "adapter", "experiment", "variant", "episode_id",
    "prompt_name", "prompt_version", "prompt_sha", *REQUEST_DETAILS,
)  # fmt: skip
USED = (
    ("model", "asked for"),
    ("target", "answered by"),
    ("adapter", "answered with"),
    ("experiment", "took part in"),
    ("variant", "answered as"),
)


class GatewayLinks:
    """Links from the request log and the state database."""

    def __init__(self, database: Database, reader: LogReader):
        self._database = database
        self._reader = reader
        self._feedback = FeedbackStore(database, {})

    def named(self, identifier: str) -> Iterable[Node]:
        """Feedback, key, team, request or episode with this id."""
        if "\x00" in identifier:
            return
        yield from self._stored(identifier)
        row = self._reader.row(identifier)
        if row is not None:
            yield request_node(row)
        yield from self._episodes(identifier)

    def described(self, node: Node) -> Node:
        """A request, a key, a team or feedback with its details."""
        if node.details:
            return node
        if node.kind == "request":
            row = self._reader.row(node.id)
            return node if row is None else request_node(row)
        if node.kind == "feedback":
            piece = self._feedback.find(node.id)
            return node if piece is None else feedback_node(piece)
        known = {"key": self._key, "team": self._team}.get(node.kind)
        return next(iter(known(node.id)), node) if known else node

    def causes(self, node: Node) -> Relations:
        """Feedback to its request, request to what it used, key to its team."""
        if node.kind == "feedback" and node.details:
            yield from self._feedback_causes(node)
        elif node.kind == "request" and node.details:
            yield from self._request_causes(node)
        elif node.kind == "key" and node.details.get("team_id"):
            yield from (("belongs to", team) for team in self._team(node.details["team_id"]))

    def effects(self, node: Node) -> Relations:
        """Request to feedback, episode and key to their latest requests, team to its keys."""
        if node.kind == "request" and node.details.get("tenant"):
            found = self._feedback.for_request(node.id, node.details["tenant"])
            yield from (("given on", feedback_node(piece)) for piece in found)
        elif node.kind == "episode" and node.tenant:
            yield from self._recent(
                "part of", "episode_id = ? AND tenant = ?", node.id, node.tenant
            )
            found = self._feedback.for_episode(node.id, node.tenant)
            yield from (("given on", feedback_node(piece)) for piece in found)
        elif node.kind == "key":
            yield from self._recent("sent with", "key_id = ?", node.id)
        elif node.kind == "team":
            yield from (("belongs to", key) for key in self._keys_of(node.id))

    def _stored(self, identifier: str) -> Iterable[Node]:
        with self._database.session() as session:
            if UUID.fullmatch(identifier):
                piece = self._feedback.find(identifier)
                if piece is not None:
                    yield feedback_node(piece)
                key = session.get(KeyRow, identifier.lower())
                if key is not None:
                    yield key_node(key)
            if len(identifier) == 64:
                for row in session.scalars(select(KeyRow).where(KeyRow.digest == identifier)):
                    yield key_node(row)
        yield from self._team(identifier)

    def _team(self, team_id: str) -> list[Node]:
        with self._database.session() as session:
            row = session.get(TeamRow, team_id)
        return [] if row is None else [Node("team", row.team_id, details=_without_ids(row.state()))]

    def _keys_of(self, team_id: str) -> list[Node]:
        query = select(KeyRow).where(KeyRow.team_id == team_id).order_by(KeyRow.key_id)
        with self._database.session() as session:
            return [key_node(row) for row in session.scalars(query)]

    def _episodes(self, episode_id: str) -> Iterable[Node]:
        rows = self._reader.select(
            "SELECT DISTINCT tenant FROM requests WHERE episode_id = ? AND tenant IS NOT NULL",
            [episode_id],
        ).rows
        yield from (Node("episode", episode_id, tenant) for (tenant,) in rows)

    def _recent(self, relation: str, where: str, *parameters: str) -> Relations:
        rows = self._reader.rows(where, parameters, columns=COLUMNS, limit=RECENT)
        return [(relation, request_node(row)) for row in rows]

    def _feedback_causes(self, node: Node) -> Relations:
        tenant, reference = node.details["tenant"], node.details["reference"]
        if node.details["episode_id"]:
            yield "given on", Node("episode", node.details["episode_id"], tenant)
        if reference:
            row = self._row(node.details["request_id"] or reference, tenant)
            yield (
                "given on",
                Node("request", reference, details={"state": "not in the log"})
                if row is None
                else request_node(row),
            )
        yield from (("sent with", key) for key in self._key(node.details["key_id"]))

    def _row(self, identifier: str, tenant: str) -> Mapping[str, Any] | None:
        row = self._reader.row(identifier)
        return row if row is not None and row["tenant"] == tenant else None

    def _key(self, key_id: str) -> list[Node]:
        with self._database.session() as session:
            row = session.get(KeyRow, key_id)
        return [Node("key", key_id)] if row is None else [key_node(row)]

    def _request_causes(self, node: Node) -> Relations:
        details = node.details
        if details.get("key_id"):
            yield from (("sent with", key) for key in self._key(details["key_id"]))
        if details.get("episode_id"):
            yield "part of", Node("episode", details["episode_id"], details["tenant"])
        for kind, relation in USED:
            if details.get(kind):
                yield relation, Node(kind, details[kind])
        if details.get("prompt_name"):
            shown = {"git_sha": details.get("prompt_sha")}
            version = details.get("prompt_version") or "?"
            yield (
                "rendered from",
                Node("prompt", f"{details['prompt_name']}@{version}", details=shown),
            )


def request_node(row: Mapping[str, Any]) -> Node:
    """A row of the log, without bodies."""
    wanted = {name: row[name] for name in COLUMNS if row.get(name) is not None}
    shown = presented(wanted)
    return Node("request", shown.pop("request_id"), details=shown)


def feedback_node(piece: FeedbackRecord) -> Node:
    """A piece of feedback."""
    return Node("feedback", piece.feedback_id, details=piece.as_dict())


def key_node(row: KeyRow) -> Node:
    """A key, without its digest."""
    return Node("key", row.key_id, details=_without_ids(row.state()) | {"team_id": row.team_id})


def _without_ids(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in ("key_id", "team_id")}
