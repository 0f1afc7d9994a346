"""The columns of a feature service, and requests held against them."""

import json
from datetime import UTC, datetime

import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float64, String

from gateway.feature_schema import SchemaMismatch, feature_schema, schema_from_dict
from gateway.feature_store import FeatureStoreError

ROW = {
    "carrier": "AA",
    "route": "JFK-LAX",
    "origin": "JFK",
    "scheduled_departure": "2013-06-01T10:30:00-04:00",
    "distance": 2475,
}


@pytest.fixture(scope="module")
def schema():
    return feature_schema("arrival_delay")


def test_it_says_what_the_definitions_say(schema):
    assert schema.entities == ("carrier", "route", "origin")
    assert schema.request_columns == ("scheduled_departure", "distance")
    assert schema.moment == "scheduled_departure"
    assert schema.features[:2] == ("carrier_flights_30d", "carrier_late_30d")
    assert schema.features[-3:] == ("hour", "weekday", "miles")
    assert len(schema.features) == 4 + 4 + 7 + 3
    assert schema.column("temp").ttl_seconds == 6 * 3600
    assert schema.column("hour").ttl_seconds is None
    assert {one.type for one in schema.columns} == {"string", "float64", "timestamp"}
    assert schema_from_dict(json.loads(json.dumps(schema.as_dict()))) == schema
    other = feature_schema("cancellation")
    assert other.columns == schema.columns


def test_what_does_not_exist_or_fit_is_named():
    with pytest.raises(FeatureStoreError, match=r"'delay' \(there are: arrival_delay, cancel"):
        feature_schema("delay")
    entity = Entity(name="e", join_keys=["e"], value_type=ValueType.STRING)
    view = FeatureView(
        name="v",
        entities=[entity],
        schema=[Field(name="e", dtype=String), Field(name="vector", dtype=Array(Float64))],
        source=FileSource(path="v.parquet", timestamp_field="t"),
    )
    service = FeatureService(name="s", features=[view])
    with pytest.raises(FeatureStoreError, match="'vector' is DOUBLE_LIST"):
        feature_schema("s", [entity, view, service])


def test_a_request_is_parsed(schema):
    (row,) = schema.parse([ROW])
    assert row["scheduled_departure"] == datetime(2013, 6, 1, 14, 30, tzinfo=UTC)
    assert row["distance"] == 2475.0 and isinstance(row["distance"], float)
    assert list(row) == list(schema.asked)
    assert schema.parse([]) == []
    every = dict.fromkeys(schema.features)
    assert schema.parse([every]) == [every]
    assert schema.parse([{**ROW, "temp": None}])[0]["temp"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distanse": 1}, "column 'distanse' is unknown (there are: carrier, route, origin, sched"),
        ({"carrier": None}, "column 'carrier' is missing"),
        ({"carrier": ""}, "column 'carrier' is empty"),
        ({"carrier": 7}, "column 'carrier' is 7, but string is wanted"),
        ({"distance": "far"}, "column 'distance' is 'far', but float64 is wanted"),
        ({"distance": True}, "column 'distance' is True, but float64 is wanted"),
        ({"distance": float("nan")}, "column 'distance' is nan, which is no number"),
        ({"scheduled_departure": "2013-06-01T10:30:00"}, "which has no time zone"),
        ({"scheduled_departure": "soon"}, "is 'soon', but a time such as 2013-06-01T14:30:00Z"),
        ({"scheduled_departure": "0001-01-01T00:00:00+14:00"}, "a time such as"),
        ({"scheduled_departure": "9999-12-31T00:00:00Z"}, "but a time from 1700 to 2200 is wanted"),
        ({"scheduled_departure": "1500-01-01T00:00:00Z"}, "but a time from 1700 to 2200 is wanted"),
        ({"distance": 10**400}, "column 'distance' is larger than 64 bits hold"),
        ({"scheduled_departure": 5}, "is 5, but a time such as"),
        ({"temp": "warm"}, "column 'temp' is 'warm', but float64 is wanted"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_column(schema, change, message):
    with pytest.raises(SchemaMismatch) as error:
        schema.parse([ROW, ROW | change])
    assert str(error.value).startswith("instances[1]: ")
    assert message in str(error.value)
    assert error.value.column == next(iter(change))


def test_rows_bring_the_same_columns(schema):
    with pytest.raises(SchemaMismatch, match=r"instances\[1\]: column 'temp' is in some rows"):
        schema.parse([ROW, ROW | {"temp": 5.0}])
    lacking = {name: ROW[name] for name in ROW if name != "route"}
    with pytest.raises(SchemaMismatch, match=r"instances\[0\]: column 'route' is missing"):
        schema.parse([lacking])
