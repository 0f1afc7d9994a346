"""Training examples out of feedback: what was asked, and the answer that a person stands behind.

A *candidate* is a demonstration (a corrected answer), or a request that was rated and has none.
Each candidate becomes an example or is counted in `Collected.dropped` under its reason, so the two
always add up. The same log and feedback give the same examples in the same order (by request id).

Only requests of one tenant and one alias are looked at, and only feedback of that tenant. Held-out
contents never become examples: they would turn an evaluation into a test of memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import select

from evals.contents import content_hash, variables_hash
from gateway.database import Database
from gateway.feedback import DEMONSTRATION, FeedbackRow
from gateway.request_log import LogReader
from rlhf.conversation import Message, Unusable, answered_in, asked_in, demonstrated

APPROVED = "approved"
ROWS_AT_ONCE = 5000
REASONS: Mapping[str, str] = {
    "not_in_log": "on requests that are not in the log",
    "not_chat": "on requests other than chat",
    "not_ok": "on requests that failed or were cut",
    "disapproved": "disapproved, and nobody gave the right answer",
    "contradicted": "approved by some, disapproved by others",
    "no_body": "whose bodies are not in the log (switched off, expired or erased)",
    "not_text": "with tools, images, several answers or a begun answer",
    "cut_short": "whose approved answer stopped at its token limit",
    "empty": "with an empty answer",
    "held_out": "held out for evaluation",
    "superseded": "asked again, with a newer or corrected answer",
    "duplicate": "asked again, with the same answer",
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which requests and which feedback.

    Attributes:
        tenant, alias: whose requests, and to which model's public name.
        since: requests that arrived from then on.
        until: feedback that was given before then.
        positive_metric: the metric whose `true` approves an answer as it is.
        approved_from: for a float metric: the value from which on it approves (its maximum);
            lower ones disapprove.
        excluded: hashes of contents that must not become examples (`evals.contents`).
    """

    tenant: str
    alias: str
    since: datetime | None = None
    until: datetime | None = None
    positive_metric: str = "helpful"
    approved_from: float | None = None
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Example:
    """What was asked, and the right answer.

    Attributes:
        completion: the answer as the model should have written it.
        source: `demonstration` or `approved`.
        user: the unit that splits and experiments go by: user, else episode, else key.
        content_hash: see `content_hash`.
    """

    messages: tuple[Message, ...]
    completion: str
    source: str
    user: str
    request_id: str
    feedback_id: str
    content_hash: str


@dataclass(frozen=True, slots=True)
class Collected:
    """Examples by request id, and how many candidates were dropped for each of `REASONS`."""

    examples: tuple[Example, ...]
    dropped: Mapping[str, int]
    selection: Selection


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of feedback on a request."""

    feedback_id: str
    request_id: str | None
    reference: str
    metric_name: str
    value: Any


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An example in the making: a demonstration's value, or None for the logged answer."""

    request_id: str
    user: str
    feedback_id: str
    source: str
    value: Any


def collect(reader: LogReader, database: Database, selection: Selection) -> Collected:
    """Join feedback with the log.

    Raises:
        ValueError: the positive metric's values are neither true/false nor, with `approved_from`,
            numbers.
    """
    dropped: Counter[str] = Counter()
    pieces = _feedback(database, selection)
    rows = _requests(reader, selection.tenant, pieces)
    of_request: dict[str, list[_Piece]] = {}
    unknown = set()
    for piece in pieces:
        row = rows.get(piece.request_id or "") or rows.get(piece.reference)
        if row is None:
            unknown.add(piece.request_id or piece.reference)
        elif _selected(row, selection):
            of_request.setdefault(row["request_id"], []).append(piece)
    dropped["not_in_log"] += len(unknown)
    candidates = []
    for request_id in sorted(of_request):
        given = of_request[request_id]
        chosen, reason = _candidates(rows[request_id], given, selection)
        candidates += chosen
        if reason is not None:
            dropped[reason] += _weight(given)
    examples = _newest(_examples(reader, candidates, selection.excluded, dropped), dropped)
    counts = {reason: dropped[reason] for reason in REASONS if dropped[reason]}
    return Collected(examples, counts, selection)


def _feedback(database: Database, selection: Selection) -> list[_Piece]:
    """Demonstrations and ratings, oldest first."""
    query = (
        select(
            FeedbackRow.feedback_id,
            FeedbackRow.request_id,
            FeedbackRow.reference,
            FeedbackRow.metric_name,
            FeedbackRow.value,
        )
        .where(
            FeedbackRow.tenant == selection.tenant,
            FeedbackRow.metric_name.in_((DEMONSTRATION, selection.positive_metric)),
            FeedbackRow.reference.is_not(None),
        )
        .order_by(FeedbackRow.feedback_id)
    )
    if selection.until is not None:
        query = query.where(FeedbackRow.created_at < selection.until)
    with database.session() as session:
        return [_Piece(*row) for row in session.execute(query)]


def _requests(
    reader: LogReader, tenant: str, pieces: Iterable[_Piece]
) -> dict[str, dict[str, Any]]:
    """Rows of the log, without bodies, by request id and by the id that the feedback names."""
    pieces = tuple(pieces)
    ours = {piece.request_id for piece in pieces if piece.request_id}
    found = {row["request_id"]: row for row in _logged(reader, "request_id", ours, tenant)}
    theirs = {piece.reference for piece in pieces if piece.request_id not in found}
    for row in _logged(reader, "upstream_id", theirs, tenant):
        found.setdefault(row["upstream_id"], row)
        found.setdefault(row["request_id"], row)
    return found


def _logged(
    reader: LogReader, column: str, names: Iterable[str], tenant: str
) -> Iterator[dict[str, Any]]:
    columns = ("request_id", "upstream_id", "ts", "model", "endpoint", "status", "user",
               "episode_id", "key_id")  # fmt: skip
    for part in _parts(sorted(names)):
        yield from reader.rows(
            f"tenant = ? AND {column} BETWEEN ? AND ? AND {column} IN (SELECT unnest(?))",
            [tenant, part[0], part[-1], part],
            columns=columns,
            order="ts, request_id",
        )


def _selected(row: Mapping[str, Any], selection: Selection) -> bool:
    early = selection.since is not None and row["ts"] < selection.since
    return row["model"] == selection.alias and not early


def _candidates(
    row: Mapping[str, Any], pieces: Sequence[_Piece], selection: Selection
) -> tuple[list[_Candidate], str | None]:
    """What a request has to offer; if that is nothing, why."""
    if row["endpoint"] != "chat":
        return [], "not_chat"
    if row["status"] != "ok":
        return [], "not_ok"
    request_id, user = row["request_id"], row["user"] or row["episode_id"] or row["key_id"] or ""
    shown = [piece for piece in pieces if piece.metric_name == DEMONSTRATION]
    if shown:
        return [
            _Candidate(request_id, user, piece.feedback_id, DEMONSTRATION, piece.value)
            for piece in shown
        ], None
    approving = [piece for piece in pieces if _approves(piece, selection)]
    if not approving:
        return [], "disapproved"
    if len(approving) < len(pieces):
        return [], "contradicted"
    return [_Candidate(request_id, user, approving[-1].feedback_id, APPROVED, None)], None


def _weight(pieces: Sequence[_Piece]) -> int:
    """How many candidates the request would have been."""
    return max(1, sum(piece.metric_name == DEMONSTRATION for piece in pieces))


def _approves(piece: _Piece, selection: Selection) -> bool:
    if isinstance(piece.value, bool):
        return piece.value
    if isinstance(piece.value, int | float) and selection.approved_from is not None:
        return piece.value >= selection.approved_from
    raise ValueError(
        f"positive_metric: {piece.metric_name!r} has the value {piece.value!r}; take a boolean"
        " metric, or a float metric and say in approved_from from which value on it approves"
    )


def _examples(
    reader: LogReader,
    candidates: Sequence[_Candidate],
    excluded: frozenset[str],
    dropped: Counter[str],
) -> Iterator[Example]:
    """Candidates with their requests' bodies, in the order of their requests."""
    wanted = sorted({candidate.request_id for candidate in candidates})
    waiting: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        waiting.setdefault(candidate.request_id, []).append(candidate)
    for part in _parts(wanted):
        rows = reader.rows(
            "request_id BETWEEN ? AND ? AND request_id IN (SELECT unnest(?))",
            [part[0], part[-1], part],
            columns=("request_id", "request", "response", "contexts"),
            order="request_id",
        )
        bodies = {row["request_id"]: row for row in rows}
        for candidate in (one for request_id in part for one in waiting[request_id]):
            row = bodies.get(candidate.request_id, {})
            try:
                example = _example(candidate, row)
                if not excluded.isdisjoint((example.content_hash, _given_hash(row))):
                    raise Unusable("held_out")
            except Unusable as error:
                dropped[error.reason] += 1
            else:
                yield example


def _example(candidate: _Candidate, row: Mapping[str, Any]) -> Example:
    messages = asked_in(row.get("request"))
    shown = candidate.source == DEMONSTRATION
    return Example(
        messages=messages,
        completion=demonstrated(candidate.value) if shown else answered_in(row.get("response")),
        source=candidate.source,
        user=candidate.user,
        request_id=candidate.request_id,
        feedback_id=candidate.feedback_id,
        content_hash=content_hash(messages),
    )


def _given_hash(row: Mapping[str, Any]) -> str | None:
    """Hash of the variables that a prompted request gave; None if it was not prompted."""
    contexts = orjson.loads(row.get("contexts") or "{}")
    variables = contexts.get("variables") if isinstance(contexts, dict) else None
    return variables_hash(variables) if isinstance(variables, dict) else None


def _newest(examples: Iterable[Example], dropped: Counter[str]) -> tuple[Example, ...]:
    """One example for each content: the newest demonstration, else the newest approved answer."""
    best: dict[str, Example] = {}
    others: list[Example] = []
    for example in examples:
        known = best.get(example.content_hash)
        if known is None or _rank(example) > _rank(known):
            best[example.content_hash] = example
            others += [known] if known is not None else []
        else:
            others.append(example)
    for other in others:
        same = other.completion == best[other.content_hash].completion
        dropped["duplicate" if same else "superseded"] += 1
    return tuple(sorted(best.values(), key=lambda example: example.request_id))


def _rank(example: Example) -> tuple[bool, str]:
    return example.source == DEMONSTRATION, example.feedback_id


def _parts(values: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), ROWS_AT_ONCE):
        yield list(values[start : start + ROWS_AT_ONCE])
