"""The year that is replayed: a frozen snapshot, its flights with what was known at each, and the
online store brought along with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.demo.tabular_terms import FlightTerms, following, start_of

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore

    from pipelines.snapshots import Snapshot

Table = Any  # pandas' frames
MOMENT, ID, KNOWN, LABEL = "scheduled_departure", "flight_id", "known_at", "late"
EVENT = "event_timestamp"
LOOK_BACK = timedelta(days=2)  # the longest `ttl` of the views
SETTLED = timedelta(days=2)  # after a month's end every outcome is known


@dataclass(frozen=True, slots=True)
class Year:
    """Flights with their features as they were known when each was due.

    Attributes:
        names: the features, in the schema's order.
        learnt: an even share of all flights.
        asked: those that are asked about, by month.
    """

    snapshot_id: str
    names: tuple[str, ...]
    learnt: Table
    asked: Mapping[date, Table]

    def known_before(self, moment: datetime) -> Table:
        """Of `learnt`, those whose outcome was known by then."""
        return self.learnt[(self.learnt[KNOWN] < moment) & self.learnt[LABEL].notna()]


def until_of(terms: FlightTerms) -> datetime:
    """The end of what a replay needs to know."""
    return start_of(following(terms.budget.months[-1])) + SETTLED


def read_year(
    store: "FeatureStore", snapshot: "Snapshot", service: str, terms: FlightTerms
) -> Year:
    """One join for all flights that anybody is going to look at."""
    import numpy as np
    import pandas as pd

    from gateway.feature_schema import feature_schema
    from pipelines.features import training_rows

    events = pd.read_parquet(snapshot.events)
    events = events[events[MOMENT] < until_of(terms) - SETTLED].reset_index(drop=True)
    random = np.random.default_rng(terms.seed)
    places = _drawn(events, terms, random)
    evenly = np.diff(np.floor(np.arange(len(events)) * terms.budget.share), prepend=-1) > 0
    wanted = evenly.copy()
    for chosen in places.values():
        wanted[chosen] = True
    rows = training_rows(store, service, events[wanted])
    order = np.cumsum(wanted) - 1
    return Year(
        snapshot_id=snapshot.id,
        names=feature_schema(service).features,
        learnt=rows.iloc[order[evenly]],
        asked={month: rows.iloc[order[chosen]] for month, chosen in places.items()},
    )


def _drawn(events: Table, terms: FlightTerms, random: Any) -> dict[date, Any]:
    """Places of the flights that are asked about, in the order of the timetable."""
    import numpy as np

    found = {}
    for month in terms.budget.months:
        due = events[MOMENT].between(start_of(month), start_of(following(month)), inclusive="left")
        (places,) = np.nonzero(due.to_numpy())
        count = min(terms.budget.flights, len(places))
        found[month] = np.sort(random.choice(places, count, replace=False))
    return found


class OnlineFeed:
    """Keeps the online store as it was at a moment: each key's newest row up to then.

    Moments rise. A row that came later than a flight was due would be missing for it, as it is in
    training; so the store must be brought to an hour before that hour's flights are asked about.
    """

    def __init__(self, store: "FeatureStore", tables: Path):
        import pandas as pd

        self._store = store
        self._tables: list[tuple[str, str, pd.DataFrame]] = []
        for view in store.list_batch_feature_views():
            path = tables / Path(getattr(view.batch_source, "path", "")).name
            if path.is_file():
                table = pd.read_parquet(path).sort_values(EVENT, kind="stable", ignore_index=True)
                self._tables.append((view.name, view.entity_columns[0].name, table))
        self._reached: datetime | None = None

    @property
    def views(self) -> Sequence[str]:
        """Names of the views that are fed."""
        return [name for name, _, _ in self._tables]

    def bring_to(self, moment: datetime) -> int:
        """Write what became known since the last moment; how many rows that was."""
        after, written = self._reached or moment - LOOK_BACK, 0
        for view, key, table in self._tables:
            first, last = table[EVENT].searchsorted([after, moment], side="right")
            fresh = table.iloc[first:last].drop_duplicates(key, keep="last")
            if len(fresh):
                self._store.write_to_online_store(view, fresh)
                written += len(fresh)
        self._reached = moment
        return written


def differing(
    names: Sequence[str], known: "pd.DataFrame", used: Sequence[Mapping[str, Any]]
) -> int:
    """Rows in which a feature that was used for the answer is not the one of the join."""
    import numpy as np

    given = np.array(
        [[_number(one.get(name)) for name in names] for one in used], dtype=float
    ).reshape(len(used), len(names))
    joined = known[list(names)].to_numpy(dtype=float)
    same = (given == joined) | (np.isnan(given) & np.isnan(joined))
    return int((~same.all(axis=1)).sum())


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
