"""Feedback on answers: metrics that the configuration declares, comments and corrected answers.

Invariants: a piece of feedback belongs to the tenant of the key that sent it and is only ever
joined to requests of that tenant. It is stored at once, `pending`, and becomes `resolved` when its
request (or episode) is found in the log: writing never waits for the log. A client's own `id` is
taken once for each tenant: the same again changes nothing, other content under it is a conflict.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import orjson
import uuid_utils
from sqlalchemy import (
    JSON,
    Index,
    String,
    Text,
    UniqueConstraint,
    delete,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from gateway.configuration import Metric
from gateway.database import Base, Conflict, Database, JsonText, Utc, now
from gateway.errors import BadRequest, NotFound

PENDING, RESOLVED = "pending", "resolved"
COMMENT, DEMONSTRATION = "comment", "demonstration"
VALUE_BYTES = 1024 * 1024
COMMENT_CHARACTERS = 64 * 1024
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
OUR_PREFIXES = ("chatcmpl-", "cmpl-", "resp_", "msg_", "embd-")
IS_PENDING = text("state = 'pending'")
IDS_AT_ONCE = 500


class FeedbackRow(Base):
    """One piece of feedback. `reference` is the request's id as the client knows it."""

    __tablename__ = "feedback"
    __table_args__ = (
        UniqueConstraint("tenant", "client_id", name="uq_feedback_tenant_client_id"),
        Index("ix_feedback_request_id", "request_id"),
        Index("ix_feedback_episode_id", "episode_id"),
        Index(
            "ix_feedback_pending",
            "feedback_id",
            sqlite_where=IS_PENDING,
            postgresql_where=IS_PENDING,
        ),
    )

    feedback_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(128))
    client_id: Mapped[str | None] = mapped_column(String(128))
    key_id: Mapped[str] = mapped_column(String(36))
    reference: Mapped[str | None] = mapped_column(String(256))
    request_id: Mapped[str | None] = mapped_column(String(36))
    episode_id: Mapped[str | None] = mapped_column(String(128))
    metric_name: Mapped[str] = mapped_column(String(128))
    type: Mapped[str] = mapped_column(String(16))
    value: Mapped[Any] = mapped_column(JsonText)
    comment: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Utc)
    state: Mapped[str] = mapped_column(String(8))


@dataclass(frozen=True, slots=True)
class NewFeedback:
    """What a client sends, with whose key.

    Attributes:
        reference: id of a request: ours, the `id` of its answer, or an upstream's; or
        episode_id: id of an episode. Exactly one of the two.
        client_id: the client's own id, against sending twice.
    """

    tenant: str
    key_id: str
    metric_name: str
    value: Any
    reference: str | None = None
    episode_id: str | None = None
    client_id: str | None = None
    comment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """A stored piece of feedback.

    Attributes:
        request_id: the request it is on, as far as it is known; canonical UUID.
        state: `pending` until the request or episode was seen in the log, then `resolved`.
    """

    feedback_id: str
    tenant: str
    client_id: str | None
    key_id: str
    reference: str | None
    request_id: str | None
    episode_id: str | None
    metric_name: str
    type: str
    value: Any
    comment: str | None
    tags: dict[str, str]
    created_at: datetime
    state: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"created_at": self.created_at.isoformat()}


class FeedbackStore:
    """Feedback in the state database. Synchronous: call it from a thread."""

    def __init__(self, database: Database, metrics: Mapping[str, Metric]):
        self._database = database
        self._metrics = metrics

    def add(self, new: NewFeedback) -> str:
        """Store `new` and return its feedback_id; the same `client_id` again returns the first.

        Raises:
            BadRequest: an undeclared metric, or a value, level or range that is not its.
            Conflict: other content was sent under this `client_id`.
        """
        row = FeedbackRow(
            feedback_id=str(uuid_utils.uuid7()),
            tenant=new.tenant,
            client_id=new.client_id,
            key_id=new.key_id,
            reference=new.reference,
            request_id=None if new.reference is None else request_id_in(new.reference),
            episode_id=new.episode_id,
            metric_name=new.metric_name,
            type=check_feedback(new, self._metrics),
            value=new.value,
            comment=new.comment,
            tags=dict(new.tags),
            created_at=now(),
            state=PENDING,
        )
        try:
            with self._database.transaction() as session:
                session.add(row)
        except IntegrityError:
            return self._first(new)
        return row.feedback_id

    def get(self, feedback_id: str, tenant: str) -> FeedbackRecord:
        """One piece; NotFound if there is none or it is another tenant's."""
        found = self.find(feedback_id)
        if found is None or tenant != found.tenant:
            raise NotFound("there is no such feedback", param="id", code="feedback_not_found")
        return found

    def find(self, feedback_id: str) -> FeedbackRecord | None:
        """One piece, whosever it is: not for the data plane."""
        if not UUID.fullmatch(feedback_id):
            return None
        with self._database.session() as session:
            row = session.get(FeedbackRow, feedback_id.lower())
        return None if row is None else _shown(row)

    def for_request(self, request_id: str, tenant: str) -> Sequence[FeedbackRecord]:
        """Feedback of `tenant` on one of its requests, oldest first."""
        return self._of(tenant, FeedbackRow.request_id == request_id)

    def for_reference(self, reference: str, tenant: str) -> Sequence[FeedbackRecord]:
        """The same, for any id that the request goes by."""
        request_id = request_id_in(reference)
        return self._of(
            tenant,
            or_(FeedbackRow.reference == reference, FeedbackRow.request_id == request_id),
        )

    def for_episode(self, episode_id: str, tenant: str) -> Sequence[FeedbackRecord]:
        """Feedback of `tenant` on one of its episodes, oldest first."""
        return self._of(tenant, FeedbackRow.episode_id == episode_id)

    def pending(self, limit: int = 10_000, after: str = "") -> Sequence[FeedbackRecord]:
        """Feedback whose request or episode was not yet seen in the log, oldest first."""
        query = (
            select(FeedbackRow)
            .where(IS_PENDING, FeedbackRow.feedback_id > after)
            .order_by(FeedbackRow.feedback_id)
            .limit(limit)
        )
        with self._database.session() as session:
            return tuple(_shown(row) for row in session.scalars(query))

    def resolve(self, found: Mapping[str, str | None]) -> None:
        """Mark as resolved: feedback_id to the request it is on (None: it is on an episode)."""
        with self._database.transaction() as session:
            for feedback_id, request_id in found.items():
                change = update(FeedbackRow).where(FeedbackRow.feedback_id == feedback_id)
                values = {"state": RESOLVED}
                if request_id is not None:
                    values["request_id"] = request_id
                session.execute(change.values(**values))

    def erase(self, feedback_ids: Iterable[str]) -> int:
        """Remove these pieces for good; returns how many there were."""
        return self._erase(FeedbackRow.feedback_id, feedback_ids)

    def erase_on(self, request_ids: Iterable[str]) -> int:
        """Remove what was given on these requests (erasure of a user); returns how many."""
        return self._erase(FeedbackRow.request_id, request_ids)

    def _erase(self, column: Any, ids: Iterable[str]) -> int:
        wanted = list(ids)
        erased = 0
        for start in range(0, len(wanted), IDS_AT_ONCE):
            part = column.in_(wanted[start : start + IDS_AT_ONCE])
            with self._database.transaction() as session:
                gone = delete(FeedbackRow).where(part).returning(FeedbackRow.feedback_id)
                erased += len(session.execute(gone).all())
        return erased

    def _of(self, tenant: str, condition: Any) -> Sequence[FeedbackRecord]:
        query = select(FeedbackRow).where(condition, FeedbackRow.tenant == tenant)
        with self._database.session() as session:
            rows = session.scalars(query.order_by(FeedbackRow.feedback_id))
            return tuple(_shown(row) for row in rows)

    def _first(self, new: NewFeedback) -> str:
        query = select(FeedbackRow).where(
            FeedbackRow.tenant == new.tenant, FeedbackRow.client_id == new.client_id
        )
        with self._database.session() as session:
            first = session.scalars(query).one()
        same = all(
            getattr(first, name) == getattr(new, name)
            for name in ("metric_name", "value", "episode_id", "comment", "tags")
        )
        if not same or _canonical(first.reference) != _canonical(new.reference):
            raise Conflict(
                f"id: {new.client_id!r} was sent before with other content; take a new id",
                param="id",
            )
        return first.feedback_id


def request_id_in(reference: str) -> str | None:
    """Our request id inside what a client calls the request, or None: an upstream's own id."""
    for prefix in OUR_PREFIXES:
        reference = reference.removeprefix(prefix)
    return reference.lower() if UUID.fullmatch(reference) else None


def _canonical(reference: str | None) -> str | None:
    return None if reference is None else request_id_in(reference) or reference


def check_feedback(new: NewFeedback, metrics: Mapping[str, Metric]) -> str:
    """The type of `new`; BadRequest names the field that does not fit what is declared."""
    if (new.reference is None) == (new.episode_id is None):
        raise BadRequest("give exactly one of request_id and episode_id", param="request_id")
    if new.metric_name == COMMENT:
        _check_comment(new.value)
        return COMMENT
    if new.metric_name == DEMONSTRATION:
        _check_level("request", new)
        _check_demonstration(new.value)
        return DEMONSTRATION
    metric = metrics.get(new.metric_name)
    if metric is None:
        known = ", ".join([*sorted(metrics), COMMENT, DEMONSTRATION])
        raise BadRequest(
            f"metric_name: no metric {new.metric_name[:128]!r} is declared (there are: {known})",
            param="metric_name",
        )
    _check_level(metric.level, new)
    {"boolean": _check_boolean, "float": _check_float, "categorical": _check_category}[metric.type](
        new.value, metric
    )
    return metric.type


def _check_level(level: str, new: NewFeedback) -> None:
    if level == "request" and new.reference is None:
        raise BadRequest(
            f"request_id: {new.metric_name} is given to a request, not to an episode",
            param="request_id",
        )
    if level == "episode" and new.episode_id is None:
        raise BadRequest(
            f"episode_id: {new.metric_name} is given to an episode, not to a request",
            param="episode_id",
        )


def _check_boolean(value: Any, _metric: Metric) -> None:
    if not isinstance(value, bool):
        raise BadRequest("value: expected true or false", param="value")


def _check_float(value: Any, metric: Metric) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest("value: expected a number", param="value")
    low = -math.inf if metric.minimum is None else metric.minimum
    high = math.inf if metric.maximum is None else metric.maximum
    if not low <= value <= high:
        raise BadRequest(f"value: {value} is not within {low} to {high}", param="value")


def _check_category(value: Any, metric: Metric) -> None:
    if value not in metric.categories:
        wanted = ", ".join(metric.categories)
        raise BadRequest(f"value: expected one of {wanted}", param="value")


def _check_comment(value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= COMMENT_CHARACTERS:
        raise BadRequest("value: expected a text of 1 to 65536 characters", param="value")


def _check_demonstration(value: Any) -> None:
    if not isinstance(value, str | dict | list) or not value:
        raise BadRequest(
            "value: expected the corrected answer: a text, a message or JSON", param="value"
        )
    try:
        size = len(orjson.dumps(value))
    except TypeError as error:
        raise BadRequest("value: nests too deeply", param="value") from error
    if size > VALUE_BYTES:
        raise BadRequest("value: at most 1 MiB", param="value")


def _shown(row: FeedbackRow) -> FeedbackRecord:
    fields = FeedbackRecord.__slots__
    return FeedbackRecord(**{name: getattr(row, name) for name in fields})
