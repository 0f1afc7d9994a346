"""Facts of the columns of a table, and what is wrong with a table beside its schema and beside
older facts: unknown, missing, retyped, empty and rescaled columns, each with its first bad row.

Rescaled means that another unit or another scale explains the values, which drift does not: they
are many times as large or as small as they were, lie far from where any lay, or are values that
were not there before, unless a common change of units (miles to kilometres, degrees) is undone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gateway.feature_schema import Column, FeatureSchema

if TYPE_CHECKING:
    import pandas as pd

POINTS = 101  # quantiles kept: 0 %, 1 %, …, 100 %
LEAST_ROWS = 500  # with fewer, quantiles say too little
MARGIN = 5  # per cent at either end that do not count as the size of a column's values
SIZE_FACTOR = 8.0
BEYOND = 2.0  # times the old range
FEW, MANY = 0.2, 0.5  # shares of values that were there before
UNITS: Mapping[str, tuple[float, float]] = {
    "a factor of 10": (10.0, 0.0),
    "a factor of 100": (100.0, 0.0),
    "a factor of 1000": (1000.0, 0.0),
    "a factor of 60": (60.0, 0.0),
    "a factor of 3600": (3600.0, 0.0),
    "miles to kilometres": (1.609344, 0.0),
    "nautical miles to kilometres": (1.852, 0.0),
    "nautical miles to miles": (1.150779, 0.0),
    "feet to metres": (0.3048, 0.0),
    "pounds to kilograms": (0.45359237, 0.0),
    "inches to centimetres": (2.54, 0.0),
    "inches to millimetres": (25.4, 0.0),
    "inches of mercury to hectopascals": (33.8639, 0.0),
    "metres a second to kilometres an hour": (3.6, 0.0),
    "Fahrenheit to Celsius": (5 / 9, -160 / 9),
    "Celsius to kelvins": (1.0, 273.15),
}


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """What is kept of a column's values.

    Attributes:
        missing: rows without a value.
        quantiles: of numbers, and of times as seconds since 1970: 0 %, 1 %, …, 100 %; else empty.
        distinct: how many different values.
        commonest: of texts, the share of the ten commonest.
    """

    type: str
    rows: int
    missing: int
    distinct: int
    quantiles: tuple[float, ...] = ()
    commonest: Mapping[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a column. `first` is the id of the first bad row, if a row is to blame."""

    column: str
    problem: str
    first: str | None = None

    def __str__(self) -> str:
        where = "" if self.first is None else f"; first bad row: {self.first}"
        return f"column {self.column!r} {self.problem}{where}"


def facts_of(frame: "pd.DataFrame", schema: FeatureSchema) -> dict[str, ColumnFacts]:
    """Facts of the schema's columns in `frame`, by name."""
    return {
        column.name: _facts(column.type, frame[column.name])
        for column in schema.columns
        if column.name in frame
    }


def findings(
    schema: FeatureSchema,
    frame: "pd.DataFrame",
    ids: str,
    reference: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Everything that is wrong with `frame`, whose column `ids` names its rows.

    `reference`: facts by name (or their `as_dict`) of a table that was as it should be.
    """
    names = [str(one) for one in frame[ids]] if ids in frame else [str(i) for i in frame.index]
    found = [
        Finding(str(name), "is unknown", names[0] if names else None)
        for name in frame.columns
        if schema.column(str(name)) is None and name != ids
    ]
    for column in schema.columns:
        if column.name not in frame:
            found.append(Finding(column.name, "is missing", names[0] if names else None))
        elif names:
            given = (reference or {}).get(column.name)
            facts = ColumnFacts(**given) if isinstance(given, Mapping) else given
            found += _wrong(column, frame[column.name], names, facts)
    return found


def distance(one: Any, other: Any) -> float:
    """The largest difference of the distribution functions of two samples (or their quantiles)."""
    if not len(one) or not len(other):
        return float(len(one) != len(other))
    one, other = np.sort(one), np.sort(other)
    places = np.concatenate([one, other])
    below = np.searchsorted(one, places, side="right") / len(one)
    below_other = np.searchsorted(other, places, side="right") / len(other)
    return float(np.abs(below - below_other).max())


def _wrong(
    column: Column, values: "pd.Series", names: Sequence[str], facts: ColumnFacts | None
) -> Iterator[Finding]:
    gone = values.isna().to_numpy()
    if gone.all():
        yield Finding(column.name, "has no value in any row", names[0])
        return
    if column.role != "feature" and gone.any():
        yield Finding(column.name, "has no value in some rows", names[int(gone.argmax())])
    bad = ~gone & ~_fits(column.type, values)
    if bad.any():
        place = int(bad.argmax())
        shown = values.iloc[place]
        problem = f"is retyped: {shown!r} ({type(shown).__name__}), {column.type} is wanted"
        yield Finding(column.name, problem, names[place])
    elif facts is not None and column.type in ("float64", "int64"):
        yield from _rescaled(column, values.to_numpy(dtype=float), names, facts)


def _rescaled(
    column: Column, values: Any, names: Sequence[str], facts: ColumnFacts
) -> Iterator[Finding]:
    now = _quantiles(values)
    before = np.asarray(facts.quantiles)
    known = min(int(np.count_nonzero(~np.isnan(values))), facts.rows - facts.missing)
    if known < LEAST_ROWS or not len(before):
        return
    problem = _scale_problem(before, now)
    if problem is not None:
        outside = (values < before[0]) | (values > before[-1])
        yield Finding(column.name, f"is rescaled: {problem}", names[int(outside.argmax())])


def _scale_problem(before: Any, now: Any) -> str | None:
    """What says that `now` is in another unit than `before` (quantiles); None if nothing does.

    Measured values lie on a grid: whole miles, tenths of degrees. However they drift, they stay on
    it; in another unit they leave it, and undoing the change puts them back.
    """
    if _shared(before, now) < FEW:
        for name, (factor, shift) in UNITS.items():
            if _shared(before, (now - shift) / factor) > MANY:
                return f"{name} explains it"
            if _shared(before, now * factor + shift) > MANY:
                return f"{name}, undone, explains it"
    low, high = before[0], before[-1]
    beyond = BEYOND * (high - low)
    if not low - beyond <= now[POINTS // 2] <= high + beyond:
        return f"half of it is beyond {now[POINTS // 2]:.4g}; it was {low:.4g} to {high:.4g}"
    if before[POINTS // 2] == 0:  # rain: now and then a value, of any size
        return None
    old, new = (max(abs(one[MARGIN]), abs(one[-1 - MARGIN])) for one in (before, now))
    if old > 0 and new > 0 and not 1 / SIZE_FACTOR <= new / old <= SIZE_FACTOR:
        return f"it is {new / old:.3g} times as large as it was"
    return None


def _shared(before: Any, now: Any) -> float:
    """The share of the different values of `now` that are among those of `before`."""
    values = np.unique(now)
    places = np.clip(np.searchsorted(before, values), 1, len(before) - 1)
    near = np.minimum(abs(values - before[places - 1]), abs(values - before[places]))
    return float(np.mean(near <= 1e-6 * (1e-3 + abs(values))))


def _fits(kind: str, values: "pd.Series") -> Any:
    """Where a value is of the type, as an array of truth values."""
    import pandas as pd

    if kind == "timestamp":
        return np.array([getattr(one, "tzinfo", None) is not None for one in values])
    if kind in ("float64", "int64") and pd.api.types.is_numeric_dtype(values.dtype):
        return np.full(len(values), not pd.api.types.is_bool_dtype(values.dtype))
    return np.array([_is(kind, one) for one in values])


def _is(kind: str, value: Any) -> bool:
    if kind == "string":
        return isinstance(value, str)
    is_truth = isinstance(value, bool | np.bool_)
    if kind == "bool":
        return is_truth or value in (0, 1)  # as models see it
    return isinstance(value, int | float | np.number) and not is_truth


def _facts(kind: str, values: "pd.Series") -> ColumnFacts:
    import pandas as pd

    missing, distinct = int(values.isna().sum()), int(values.nunique())
    numbers: Any = None
    if kind == "timestamp" and isinstance(values.dtype, pd.DatetimeTZDtype):
        moments = values.dropna().dt.tz_convert("UTC").dt.tz_localize(None)
        numbers = moments.to_numpy("datetime64[us]").astype("int64") / 1e6
    elif kind != "string" and pd.api.types.is_numeric_dtype(values.dtype):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
    quantiles = () if numbers is None else tuple(float(one) for one in _quantiles(numbers))
    shares = None
    if kind == "string":
        counted = values.value_counts(normalize=True).head(10)
        shares = {str(name): round(float(share), 6) for name, share in counted.items()}
    return ColumnFacts(kind, len(values), missing, distinct, quantiles, shares)


def _quantiles(numbers: Any) -> Any:
    known = numbers[~np.isnan(numbers)]
    return (
        np.quantile(known, np.linspace(0, 1, POINTS), method="nearest")
        if len(known)
        else np.array([])
    )
