"""Training and serving see the same values, each as it was known at its moment."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.feature_reads import FeaturesUnavailable, OnlineFeatures
from gateway.feature_store import open_feature_store
from pipelines.features import FeaturesMissing, materialise, open_features, training_rows
from tests.embedding_stack import RedisProcess
from tests.pipelines.flight_tables import write_week

SERVICE = "arrival_delay"
BROUGHT = ("carrier", "route", "origin", "scheduled_departure", "distance")
MOMENT = pd.Timestamp("2013-02-11T15:00Z")
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_week(tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def store(tables: Path, redis: RedisProcess) -> Iterator[FeatureStore]:
    with open_features(tables, redis.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def online(redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> OnlineFeatures:
    """The reader of another process: a registry of its own."""
    home = tmp_path_factory.mktemp("home")
    return OnlineFeatures(open_feature_store(home, redis.url, key_ttl_seconds=600), SERVICE)


def due(tables: Path, moment: pd.Timestamp) -> pd.DataFrame:
    """Events of the hour from `moment`, in which no row of features is born."""
    events = pd.read_parquet(tables / "flights.parquet")
    return events[events["scheduled_departure"].between(moment, moment + HOUR, "left")]


def asked(events: pd.DataFrame) -> list[dict[str, Any]]:
    """What callers bring, as JSON has it."""
    rows: list[dict[str, Any]] = events[list(BROUGHT)].to_dict("records")
    return [row | {"scheduled_departure": row["scheduled_departure"].isoformat()} for row in rows]


def test_training_and_serving_see_the_same(tables, store, online):
    compared = 0
    for moment in (MOMENT + 3 * 24 * HOUR, MOMENT):  # and back again: a replay begins anew
        events = due(tables, moment)
        assert materialise(store, moment) == ["carrier_rates", "route_rates", "weather"]
        trained = training_rows(store, SERVICE, events)
        served = online.read(online.schema.parse(asked(events)))
        assert len(served) == len(events) > 20
        assert list(trained["flight_id"]) == list(events["flight_id"])
        for name in online.schema.features:
            np.testing.assert_array_equal(trained[name].to_numpy(), served[name].to_numpy(), name)
            compared += int(served[name].notna().sum())
    assert compared > 1000


def test_what_is_too_old_or_too_young_is_missing_in_both(tables, store, online):
    materialise(store, MOMENT)
    event = due(tables, MOMENT).iloc[[0]]
    for shift, is_known in ((HOUR * 0, True), (HOUR * 6, True), (HOUR * 7, False)):
        later = event.assign(scheduled_departure=MOMENT + shift)
        served = online.read(online.schema.parse(asked(later)))
        assert served["temp"].notna()[0] == is_known
    ancient = event.assign(scheduled_departure=MOMENT + 100 * 24 * HOUR)
    trained = training_rows(store, SERVICE, ancient)
    served = online.read(online.schema.parse(asked(ancient)))
    for frame in (trained, served):
        assert frame[["temp", "carrier_late_30d", "route_late_30d"]].isna().all(axis=None)
        assert frame[["hour", "weekday", "miles"]].notna().all(axis=None)
    early = event.assign(scheduled_departure=MOMENT - HOUR)
    assert online.read(online.schema.parse(asked(early)))["temp"].isna()[0]


def test_what_a_request_brings_is_kept(tables, store, online):
    materialise(store, MOMENT)
    (row,) = asked(due(tables, MOMENT).iloc[[0]])
    stranger = {**row, "carrier": "ZZ", "temp": 1}
    served = online.read(online.schema.parse([stranger]))
    assert served["temp"][0] == 1.0 and np.isnan(served["carrier_late_30d"][0])
    assert served["route_late_30d"].notna()[0]
    every = dict.fromkeys(online.schema.features, 0.5)
    assert (online.read(online.schema.parse([every]))[list(every)] == 0.5).all(axis=None)


def test_redis_away_is_said(tables, online, redis):
    (row,) = online.schema.parse(asked(due(tables, MOMENT).iloc[[0]]))
    redis.kill()
    with pytest.raises(FeaturesUnavailable, match="the online store of features"):
        online.read([row])
    redis.start()
    assert online.read([row])["temp"].isna()[0]


def test_what_is_not_there_is_named(tables, tmp_path):
    with pytest.raises(FeaturesMissing, match=r"rates.parquet: is not there"):
        open_features(tmp_path).__enter__()
    with open_features(tables) as store:
        events = due(tables, MOMENT)
        with pytest.raises(FeaturesMissing, match="no column 'route'"):
            training_rows(store, SERVICE, events.drop(columns="route"))
        events = events.assign(origin=events["origin"].where(events.index != events.index[3]))
        with pytest.raises(FeaturesMissing, match="row 3 has no 'origin'"):
            training_rows(store, SERVICE, events)


TIMES = st.integers(0, 200).map(lambda hours: pd.Timestamp("2013-03-01T00:00Z") + hours * HOUR)
ROWS = st.lists(st.tuples(st.sampled_from("AB"), TIMES, st.floats(0, 1)), min_size=1, max_size=12)
EVENTS = st.lists(st.tuples(st.sampled_from("ABC"), TIMES), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def few(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A carrier table to be overwritten, and the store that reads it."""
    folder = tmp_path_factory.mktemp("few")
    shutil.copytree(tables, folder, dirs_exist_ok=True)
    with open_features(folder) as opened:
        yield folder / "carrier_rates.parquet", opened


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(ROWS, EVENTS)
def test_a_row_counts_from_its_time_on_as_long_as_its_ttl(few, rows, events):
    path, store = few
    shares = {(key, time): share for key, time, share in rows}
    table = pd.DataFrame(list(shares), columns=["carrier", "event_timestamp"]).assign(
        carrier_flights_30d=1.0, carrier_late_30d=list(shares.values()), carrier_delay_30d=1.0,
        carrier_cancelled_30d=0.0,
    )  # fmt: skip
    table.to_parquet(path, coerce_timestamps="us")
    frame = pd.DataFrame(events, columns=["carrier", "scheduled_departure"]).assign(
        route="JFK-LAX", origin="JFK", distance=100.0
    )
    found = training_rows(store, SERVICE, frame)["carrier_late_30d"]
    for value, (key, moment) in zip(found, events, strict=True):
        counting = [
            (time, share)
            for (one, time), share in shares.items()
            if one == key and time <= moment <= time + timedelta(days=2)
        ]
        np.testing.assert_equal(value, max(counting)[1] if counting else np.nan)
