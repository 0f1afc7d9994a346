"""What is wrong with a table beside its schema and older facts, and what is not."""

import json

import numpy as np
import pandas as pd
import pytest

from evals.columns import UNITS, facts_of, findings
from gateway.feature_schema import Column, FeatureSchema

SCHEMA = FeatureSchema(
    "trips",
    (
        Column("carrier", "string", "entity"),
        Column("start", "timestamp", "request"),
        Column("distance", "float64", "request"),
        Column("temp", "float64", "feature", 3600.0),
        Column("share", "float64", "feature", 3600.0),
    ),
    "start",
)


def table(rows: int = 1000, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "trip_id": [f"t{place}" for place in range(rows)],
            "carrier": draw.choice(["AA", "UA"], rows),
            "start": pd.date_range("2013-01-01", periods=rows, freq="h", tz="UTC"),
            "distance": draw.choice([187.0, 719.0, 1065.0, 2475.0], rows),
            "temp": draw.normal(50, 15, rows).round(),
            "share": draw.beta(2, 8, rows),
        }
    )


def said(frame: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    facts = None if reference is None else facts_of(reference, SCHEMA)
    return [str(one) for one in findings(SCHEMA, frame, "trip_id", facts)]


def test_a_table_as_it_should_be():
    assert said(table(), table(seed=1)) == []
    assert said(table().assign(temp=np.nan, share=np.nan).iloc[:0]) == []
    gaps = table().assign(temp=lambda frame: frame["temp"].where(frame.index > 900))
    assert said(gaps, table()) == []


def test_drift_is_not_a_change_of_scale():
    warmer = table().assign(temp=lambda frame: (frame["temp"] * 0.7 + 30).round())
    longer = table().assign(distance=np.random.default_rng(1).choice([1065.0, 2475.0], 1000))
    worse = table().assign(share=np.random.default_rng(1).beta(4, 6, 1000))
    for frame in (warmer, longer, worse):
        assert said(frame, table(seed=1)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(odd=1), "column 'odd' is unknown; first bad row: t0"),
        (lambda frame: frame.drop(columns="temp"), "column 'temp' is missing; first bad row: t0"),
        (lambda frame: frame.assign(temp=np.nan), "column 'temp' has no value in any row; first"),
        (
            lambda frame: frame.assign(carrier=frame["carrier"].where(frame.index != 4)),
            "column 'carrier' has no value in some rows; first bad row: t4",
        ),
        (
            lambda frame: frame.assign(
                temp=frame["temp"].astype(object).where(frame.index != 7, "n/a")
            ),
            "column 'temp' is retyped: 'n/a' (str), float64 is wanted; first bad row: t7",
        ),
        (
            lambda frame: frame.assign(carrier=range(1000)),
            "column 'carrier' is retyped: np.int64(0) (int64), string is wanted; first bad row: t0",
        ),
        (
            lambda frame: frame.assign(start=frame["start"].dt.tz_localize(None)),
            "column 'start' is retyped: Timestamp('2013-01-01 00:00:00') (Timestamp)",
        ),
        (lambda frame: frame.assign(share=frame["share"] > 0.2), "'share' is retyped: "),
    ],
)
def test_a_column_that_is_wrong_is_named_with_its_first_bad_row(change, message):
    (line,) = said(change(table()))
    assert message in line


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("undone", [False, True])
def test_another_unit_is_noticed(unit, undone):
    factor, shift = UNITS[unit]
    old = table(seed=1)
    name = "temp" if shift else "distance"
    values = (table()[name] - shift) / factor if undone else table()[name] * factor + shift
    (line,) = said(table().assign(**{name: values}), old)
    assert line.startswith(f"column '{name}' is rescaled")


def test_another_scale_is_noticed():
    for factor in (12.0, 1 / 12):
        (line,) = said(table().assign(share=table()["share"] * factor), table(seed=1))
        assert "column 'share' is rescaled" in line
    few = table(100).assign(share=lambda frame: frame["share"] * 100)
    assert said(few, table(seed=1)) == []  # too few rows to say so


def test_facts_are_plain_and_come_back():
    facts = facts_of(table(), SCHEMA)
    plain = json.loads(json.dumps({name: one.as_dict() for name, one in facts.items()}))
    scaled = table().assign(distance=lambda frame: frame["distance"] * 1.609344)
    (found,) = findings(SCHEMA, scaled, "trip_id", plain)
    assert found.problem == "is rescaled: miles to kilometres explains it"
    assert facts["carrier"].distinct == 2
    assert sum((facts["carrier"].commonest or {}).values()) > 0.999
    assert facts["start"].quantiles[0] == pd.Timestamp("2013-01-01T00:00Z").timestamp()
