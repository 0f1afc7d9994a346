"""What the logged requests cost, in exact decimals: sums of the one figure each row was booked at.

Self-hosted models are booked per token at a rate that assumes a busy node; `reconcile` sets that
against the hours the node was paid for, and the difference, the idle cost, is a line of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from gateway.configuration import Configuration
from gateway.request_log import LogReader

DIMENSIONS = {
    "model": "model",
    "team": "team",
    "key": "key_id",
    "prompt": "prompt_name || coalesce('@' || prompt_version, '')",
    "user": '"user"',
    "tenant": "tenant",
    "target": "target",
    "day": "CAST(date AS VARCHAR)",
}
NANO = Decimal("0.000000001")
US_PER_HOUR = Decimal(3_600_000_000)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class UnknownDimension(ValueError):
    """Costs cannot be summed by that."""


class BadSince(ValueError):
    """Not a time span such as `7d`, and not a date."""


@dataclass(frozen=True, slots=True)
class CostLine:
    """Sums of one group; `name` is None where the rows say nothing. Money in USD."""

    name: str | None
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    saved_usd: Decimal


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One self-hosted upstream: what its node cost and what was booked for its models.

    `idle_usd` is the node's cost that no request paid for; below zero, more was booked than the
    node cost, and the stated throughput is too low.
    """

    upstream: str
    models: tuple[str, ...]
    requests: int
    node_hours: Decimal
    node_usd: Decimal
    booked_usd: Decimal

    @property
    def idle_usd(self) -> Decimal:
        """Node cost less what was booked, USD."""
        return self.node_usd - self.booked_usd


def since_time(text: str, now: datetime | None = None) -> datetime:
    """`30m`, `24h`, `7d`, `2w` before now, or an ISO date or time (UTC unless it says)."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and number.isascii() and number.isdigit():
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[unit]: int(number)})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise BadSince(f"{text!r}: give a span such as 24h or 7d, or a date") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def costs(reader: LogReader, *, by: str = "model", since: datetime | None = None) -> list[CostLine]:
    """Sums by one of `DIMENSIONS`, dearest first. Raises UnknownDimension."""
    if by not in DIMENSIONS:
        raise UnknownDimension(f"{by!r}: sum by one of {', '.join(DIMENSIONS)}")
    condition, parameters = _from(since)
    result = reader.select(
        f"SELECT {DIMENSIONS[by]} AS name, {_SUMS} FROM requests WHERE {condition}"
        " GROUP BY 1 ORDER BY cost_usd DESC, requests DESC, name NULLS LAST",
        parameters,
    )
    return [_line(row) for row in result.dicts()]


def total(lines: Iterable[CostLine]) -> CostLine:
    """The sum of lines."""
    listed = list(lines)
    return CostLine(
        name="total",
        requests=sum(line.requests for line in listed),
        input_tokens=sum(line.input_tokens for line in listed),
        cached_tokens=sum(line.cached_tokens for line in listed),
        output_tokens=sum(line.output_tokens for line in listed),
        reasoning_tokens=sum(line.reasoning_tokens for line in listed),
        cost_usd=sum((line.cost_usd for line in listed), start=Decimal(0)),
        saved_usd=sum((line.saved_usd for line in listed), start=Decimal(0)),
    )


def reconcile(
    reader: LogReader,
    configuration: Configuration,
    *,
    node_hours: Mapping[str, Decimal],
    since: datetime | None = None,
) -> list[NodeLine]:
    """A line for each upstream with self-hosted models. `node_hours` is by upstream name."""
    booked = {line.name: line for line in costs(reader, by="model", since=since)}
    lines = []
    for upstream in sorted(self_hosted(configuration)):
        models = self_hosted(configuration)[upstream]
        hours = node_hours.get(upstream, Decimal(0))
        found = [booked[name] for name in models if name in booked]
        lines.append(
            NodeLine(
                upstream=upstream,
                models=tuple(models),
                requests=sum(line.requests for line in found),
                node_hours=hours,
                node_usd=(hours * max(models.values())).quantize(NANO, ROUND_HALF_EVEN),
                booked_usd=sum((line.cost_usd for line in found), start=Decimal(0)),
            )
        )
    return lines


def self_hosted(configuration: Configuration) -> dict[str, dict[str, Decimal]]:
    """By upstream: its self-hosted models and what their node costs, USD an hour."""
    nodes: dict[str, dict[str, Decimal]] = {}
    for alias, model in configuration.models.items():
        if model.self_hosted is not None:
            price = model.self_hosted.node_usd_per_hour
            nodes.setdefault(model.upstream, {})[alias] = price
    return nodes


def hours_between(spans: Iterable[tuple[int, int]], since: datetime | None) -> Decimal:
    """Hours in spans of microseconds since the epoch, as far as they lie after `since`."""
    start = 0 if since is None else int(since.timestamp() * 1_000_000)
    micros = sum(max(0, end - max(begin, start)) for begin, end in spans)
    return (Decimal(micros) / US_PER_HOUR).quantize(NANO, ROUND_HALF_EVEN)


_SUMMED = [
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "saved_usd",
]
_SUMS = "count(*) AS requests, " + ", ".join(
    f"coalesce(sum({name}), 0) AS {name}" for name in _SUMMED
)


def _line(row: dict[str, Any]) -> CostLine:
    return CostLine(
        name=row["name"],
        requests=int(row["requests"]),
        input_tokens=int(row["input_tokens"]),
        cached_tokens=int(row["cached_tokens"]),
        output_tokens=int(row["output_tokens"]),
        reasoning_tokens=int(row["reasoning_tokens"]),
        cost_usd=row["cost_usd"],
        saved_usd=row["saved_usd"],
    )


def _from(since: datetime | None) -> tuple[str, list[object]]:
    if since is None:
        return "true", []
    micros = int(since.timestamp() * 1_000_000)
    return "date >= ? AND ts >= make_timestamptz(?)", [since.astimezone(UTC).date(), micros]
