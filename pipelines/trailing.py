"""Trailing windows: what was known, at each of several moments, of the events of the last while.

An event counts from the moment that its outcome is known until its own time leaves the window. That
is how a rate looks to somebody who asks at that moment, so it may be used to predict from then on.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

TIME, KNOWN = "time", "known_at"


def trailing_sums(
    events: "pd.DataFrame", key: str, moments: "pd.DatetimeIndex", span: "pd.Timedelta"
) -> "pd.DataFrame":
    """Sums per key and moment, over events with `known_at` <= moment < `time` + span.

    Args:
        events: columns `time`, `known_at`, `key`; every other column is summed, and has no gaps.
        moments: rising.

    Returns: the key's column, `moment`, `events` (how many) and the sums; a row for each key and
        moment whose window holds an event.
    """
    import pandas as pd

    enters = moments.searchsorted(events[KNOWN], side="left")
    leaves = moments.searchsorted(events[TIME] + span, side="left")
    counted = events.drop(columns=[TIME, KNOWN]).assign(events=1)
    lasts = leaves > enters  # an outcome that came too late is in no window
    changes = pd.concat(
        [
            counted[lasts].assign(place=enters[lasts]),
            _negated(counted[lasts], key).assign(place=leaves[lasts]),
        ]
    )
    changes = changes[changes["place"] < len(moments)]
    steps = changes.groupby([key, "place"], sort=True).sum()
    grid = pd.MultiIndex.from_product(
        [np.unique(changes[key]), range(len(moments))], names=[key, "place"]
    )
    sums = steps.reindex(grid, fill_value=0).groupby(level=0).cumsum()
    held = sums[sums["events"] > 0].reset_index()
    return held.assign(moment=moments[held["place"]]).drop(columns="place")


def _negated(events: "pd.DataFrame", key: str) -> "pd.DataFrame":
    values = -events.drop(columns=key)
    return values.assign(**{key: events[key]})
