"""Which gaps in the log and the feedback an erasure order explains.

An order (`llmops logs erase`) leaves a row in the audit trail: when, how many rows of the log it
touched, and whether it deleted or cleared them; whom it forgot is known by a digest only. So an
order is taken to explain a gap if it came after the request, does what the gap looks like, and has
not explained as many requests as it touched rows already: an order for three requests never excuses
a fourth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import AuditRow
from gateway.database import now

ACTION = "log.erase"


@dataclass(slots=True)
class Order:
    """An erasure that was carried out. `room`: rows it touched that explain nothing yet."""

    audit_id: str
    at: datetime
    deleted: bool
    room: int


@dataclass(slots=True)
class Excuses:
    """Explains gaps; the same request always in the same way."""

    orders: list[Order]
    retain_days: int | None = None
    given: dict[tuple[str, bool], str | None] = field(default_factory=dict)

    @classmethod
    def known(cls, session: Session, retain_days: int | None) -> "Excuses":
        """By the audit trail and the configured age."""
        query = select(AuditRow).where(AuditRow.action == ACTION).order_by(AuditRow.id)
        return cls([_order(row) for row in session.scalars(query)], retain_days)

    def request(self, request_id: str) -> str | None:
        """Why a request's row is not in the log; None: nothing explains it."""
        return self.expired(request_id) or self._given(request_id, deleted=True)

    def feedback(self, request_id: str, *, logged: bool) -> str | None:
        """Why feedback on a request is gone that is in the log without its bodies, or not at all.

        Age alone explains nothing: feedback does not expire.
        """
        if logged:
            return self._given(request_id, deleted=False)
        by_order = self._given(request_id, deleted=True)
        if by_order is None and self.expired(request_id) is not None:
            return self._given(request_id, deleted=False)
        return by_order

    def users(self, since: datetime, count: int) -> str | None:
        """Why `count` users with requests from `since` on are gone; each had one row at least."""
        later = [order for order in self.orders if order.at >= since and order.room > 0]
        if sum(order.room for order in later) < count:
            return None
        used = []
        for order in later:
            if count > 0:
                taken = min(order.room, count)
                order.room, count = order.room - taken, count - taken
                used.append(order.audit_id)
        return f"erased (order {', '.join(used)})"

    def _given(self, request_id: str, *, deleted: bool) -> str | None:
        key = (request_id, deleted)
        if key not in self.given:
            self.given[key] = self._take(made_at(request_id), deleted=deleted)
        return self.given[key]

    def _take(self, made: datetime, *, deleted: bool) -> str | None:
        for order in self.orders:
            if order.at >= made and order.deleted is deleted and order.room > 0:
                order.room -= 1
                return f"erased (order {order.audit_id})"
        return None

    def expired(self, request_id: str) -> str | None:
        """Whether the configured age explains that what was made then is gone."""
        if self.retain_days is None:
            return None
        limit = now().date() - timedelta(days=self.retain_days)
        expired = made_at(request_id).date() < limit
        return f"expired (log.retain_days is {self.retain_days})" if expired else None


def made_at(request_id: str) -> datetime:
    """When a UUIDv7 was made."""
    try:
        return datetime.fromtimestamp(int(request_id.replace("-", "")[:12], 16) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def _order(row: AuditRow) -> Order:
    done: Mapping[str, object] = row.evidence or {}
    touched = done.get("rows")
    room = touched if isinstance(touched, int) else 0
    return Order(row.id, row.ts, bool(done.get("rows_deleted")), room)
