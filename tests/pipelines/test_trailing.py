"""Trailing sums against a plain count of each window."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pipelines.trailing import trailing_sums

START = pd.Timestamp("2013-01-01", tz="UTC")
HOURS = st.integers(0, 60)
EVENTS = st.lists(st.tuples(st.sampled_from("ab"), HOURS, st.integers(0, 50), st.integers(-3, 3)))


@given(EVENTS, st.sets(HOURS, min_size=1), st.integers(1, 30))
def test_sums_are_those_of_each_window(events, moments, span):
    at = pd.DatetimeIndex(sorted(START + pd.Timedelta(hours=one) for one in moments))
    frame = pd.DataFrame(events, columns=["key", "time", "after", "value"])
    frame["time"] = START + pd.to_timedelta(frame["time"].astype(int), unit="h")
    frame["known_at"] = frame["time"] + pd.to_timedelta(frame.pop("after").astype(int), unit="h")
    frame["value"] = frame["value"].astype(int)
    found = trailing_sums(frame, "key", at, pd.Timedelta(hours=span))
    expected = {}
    for moment in at:
        held = frame[
            (frame["known_at"] <= moment) & (moment < frame["time"] + pd.Timedelta(hours=span))
        ]
        for key, rows in held.groupby("key"):
            expected[key, moment] = (len(rows), int(rows["value"].sum()))
    got = {(row.key, row.moment): (row.events, row.value) for row in found.itertuples(index=False)}
    assert got == expected
