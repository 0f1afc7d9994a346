"""Rows of a made-up airline: lateness follows the hour, the wind and the carrier's record."""

import numpy as np
import pandas as pd

from pipelines.tabular_rows import TabularRows

FEATURES = ("hour", "wind", "record")
START = pd.Timestamp("2013-01-01", tz="UTC")


def flights(days=60, per_day=60, seed=0, first=0) -> pd.DataFrame:
    """`per_day` flights on each of `days` from day `first` on, in order; a tenth has no wind."""
    draw = np.random.default_rng(seed)
    count = days * per_day
    day = np.repeat(np.arange(days), per_day)
    hour, wind = draw.uniform(5, 23, count), draw.gamma(3, 3, days)[day] + draw.normal(0, 1, count)
    carrier = draw.choice(["AA", "UA", "DL"], count)
    record = pd.Series(carrier).map({"AA": 0.2, "UA": 0.3, "DL": 0.1}).to_numpy()
    odds = -3.6 + 0.12 * hour + 0.08 * wind + 2 * record
    delay = odds + draw.logistic(size=count)
    made = pd.DataFrame(
        {
            "carrier": carrier,
            "scheduled_departure": START
            + pd.to_timedelta(first + day, unit="D")
            + pd.to_timedelta(hour, unit="h").floor("min"),
            "hour": hour,
            "wind": np.where(draw.random(count) < 0.1, np.nan, wind),
            "record": record,
            "late": delay > 0,
            "dep_delay": 20 * delay + draw.normal(0, 5, count),
        }
    )
    return made.sort_values("scheduled_departure", kind="stable", ignore_index=True)


def rows_of(table: pd.DataFrame, names=FEATURES) -> TabularRows:
    """As `read_rows` gives them."""
    days = table["scheduled_departure"].dt.tz_localize(None).to_numpy("datetime64[D]")
    return TabularRows(table, names, table["late"].astype(float).to_numpy(), days)
