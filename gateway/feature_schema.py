"""The columns of a feature service, derived from its definitions, and requests held against them.

One source: what `feature_repo/` defines is what a training set holds, what a model's signature
says and what a live request may bring. Nothing here is written down a second time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from gateway.feature_store import REPOSITORY, FeatureStoreError, definitions

if TYPE_CHECKING:
    from feast.value_type import ValueType

Role = Literal["entity", "request", "feature"]
TYPES: Mapping[str, str] = {  # by the name of Feast's value type
    "STRING": "string",
    "DOUBLE": "float64",
    "FLOAT": "float64",
    "INT64": "int64",
    "INT32": "int64",
    "BOOL": "bool",
    "UNIX_TIMESTAMP": "timestamp",
}
PLAIN: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "float64": (int, float),
    "int64": (int,),
    "bool": (bool,),
}
LARGEST = 2**63
EARLIEST, LATEST = datetime(1700, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
MOMENT = "moment"  # a service's tag: the request column whose time counts


class SchemaMismatch(ValueError):
    """A row does not fit the columns. `column` is its name, `row` says which row it is."""

    def __init__(self, row: str, column: str, problem: str):
        super().__init__(f"{row}: column {column!r} {problem}")
        self.row, self.column, self.problem = row, column, problem


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        type: string, float64, int64, bool or timestamp.
        role: `entity` (a key that features are joined by), `request` (every caller brings it),
            or `feature`.
        ttl_seconds: how long a feature's row counts; None: for ever, or made from the request.
    """

    name: str
    type: str
    role: Role
    ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The columns of one feature service: keys, what requests bring, features, in this order.

    `moment` is the request column whose time counts, if there is one.
    """

    service: str
    columns: tuple[Column, ...]
    moment: str | None = None

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of the keys that features are joined by."""
        return self._named("entity")

    @property
    def request_columns(self) -> tuple[str, ...]:
        """Names of what every request brings beside the keys."""
        return self._named("request")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what a model sees."""
        return self._named("feature")

    @property
    def asked(self) -> tuple[str, ...]:
        """What a request has to bring: keys and request columns."""
        return self.entities + self.request_columns

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        return next((one for one in self.columns if one.name == name), None)

    def parse(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a request, checked; times become UTC datetimes.

        A row brings every key and request column, or else every feature; beside the first any
        feature that is to be taken as it is given.

        Raises: SchemaMismatch: a column is unknown, missing or of another type.
        """
        parsed = [self._parsed(f"instances[{place}]", row) for place, row in enumerate(rows)]
        for place, row in enumerate(parsed):
            differing = sorted(row.keys() ^ parsed[0].keys())
            if differing:
                problem = "is in some rows and not in others"
                raise SchemaMismatch(f"instances[{place}]", differing[0], problem)
        return parsed

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "service": self.service,
            "moment": self.moment,
            "columns": [asdict(column) for column in self.columns],
        }

    def _named(self, role: Role) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.role == role)

    def _parsed(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        unknown = [name for name in row if self.column(name) is None]
        if unknown:
            known = ", ".join(column.name for column in self.columns)
            raise SchemaMismatch(where, unknown[0], f"is unknown (there are: {known})")
        if not row.keys() >= set(self.features):
            for name in self.asked:
                if row.get(name) is None:
                    raise SchemaMismatch(where, name, "is missing")
        return {
            column.name: _value(where, column, row[column.name])
            for column in self.columns
            if column.name in row
        }


def schema_from_dict(fields: Mapping[str, Any]) -> FeatureSchema:
    """What `as_dict` gave."""
    columns = tuple(Column(**column) for column in fields["columns"])
    return FeatureSchema(fields["service"], columns, fields["moment"])


def feature_schema(service: str, found: Sequence[Any] | None = None) -> FeatureSchema:
    """The columns of `service` as `feature_repo/` (or `found`, its objects) defines them.

    Raises: FeatureStoreError: there is no such service, or a column's type is none of ours.
    """
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView  # takes seconds

    found = definitions(REPOSITORY) if found is None else found
    services = {one.name: one for one in found if isinstance(one, FeatureService)}
    if service not in services:
        known = ", ".join(sorted(services)) or "none"
        raise FeatureStoreError(f"no feature service {service!r} (there are: {known})")
    views = {one.name: one for one in found if isinstance(one, FeatureView | OnDemandFeatureView)}
    keys = {one.name: one for one in found if isinstance(one, Entity)}
    columns: dict[Role, dict[str, Column]] = {"entity": {}, "request": {}, "feature": {}}
    for projection in services[service].feature_view_projections:
        view = views[projection.name]
        if isinstance(view, OnDemandFeatureView):
            for source in view.source_request_sources.values():
                columns["request"] |= _columns(source.schema, "request")
            columns["feature"] |= _columns(projection.features, "feature")
            continue
        for name in view.entities:
            entity = keys[name]
            columns["entity"][entity.join_key] = Column(
                entity.join_key, _type(entity.join_key, entity.value_type), "entity"
            )
        ttl = view.ttl.total_seconds() if view.ttl else None
        columns["feature"] |= _columns(projection.features, "feature", ttl)
    listed = [column for role in columns.values() for column in role.values()]
    return FeatureSchema(service, tuple(listed), services[service].tags.get(MOMENT))


def _columns(fields: Sequence[Any], role: Role, ttl: float | None = None) -> dict[str, Column]:
    return {
        field.name: Column(field.name, _type(field.name, field.dtype.to_value_type()), role, ttl)
        for field in fields
    }


def _type(name: str, kind: "ValueType") -> str:
    if kind.name not in TYPES:
        raise FeatureStoreError(
            f"feature_repo: column {name!r} is {kind.name}, which no model takes"
        )
    return TYPES[kind.name]


def _value(where: str, column: Column, value: Any) -> Any:
    if value is None:
        if column.role == "feature":
            return None
        raise SchemaMismatch(where, column.name, "is missing")
    if column.type == "timestamp":
        return _time(where, column.name, value)
    wrong = not isinstance(value, PLAIN[column.type])
    if wrong or (isinstance(value, bool) and column.type != "bool"):
        raise SchemaMismatch(where, column.name, f"is {value!r}, but {column.type} is wanted")
    if column.type == "string" and not value:
        raise SchemaMismatch(where, column.name, "is empty")
    if isinstance(value, float) and not math.isfinite(value):
        raise SchemaMismatch(where, column.name, f"is {value}, which is no number")
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise SchemaMismatch(where, column.name, "is larger than 64 bits hold")
    return float(value) if column.type == "float64" else value


def _time(where: str, name: str, value: Any) -> datetime:
    try:
        given = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        moment = given.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise SchemaMismatch(
            where, name, f"is {value!r}, but a time such as 2013-06-01T14:30:00Z is wanted"
        ) from None
    if given.tzinfo is None:
        raise SchemaMismatch(where, name, f"is {value!r}, which has no time zone")
    if not EARLIEST <= moment < LATEST:
        raise SchemaMismatch(
            where, name, f"is {value!r}, but a time from {EARLIEST:%Y} to {LATEST:%Y} is wanted"
        )
    return moment
