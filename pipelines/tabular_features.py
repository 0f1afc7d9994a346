"""The frozen data set of a tabular model: events of a snapshot with their features as they were
known at each, the last days apart.

Only what the feature service names is in it, beside the event's id and the label: whatever else the
source knows of an event, it may not have known in time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.feature_schema import feature_schema
from pipelines.features import open_features, training_rows
from pipelines.manifest import Manifest, seal
from pipelines.schema import columns_of, require_fits
from pipelines.snapshots import source_of
from pipelines.tabular_rows import TEST, TRAIN, BadData
from pipelines.tabular_spec import TabularData

if TYPE_CHECKING:
    import pandas as pd

PERIOD = "period.json"
COLUMNS = "columns"  # of a manifest: the schema and facts of the values


@dataclass(frozen=True, slots=True)
class Period:
    """From one moment to before another, UTC."""

    since: datetime
    until: datetime

    def write(self, folder: Path) -> None:
        """Keep it: the stages of a pass go by the same one, also over midnight."""
        (folder / PERIOD).write_text(orjson.dumps(self).decode())

    @classmethod
    def read(cls, folder: Path) -> "Period":
        """What `write` kept."""
        kept = orjson.loads((folder / PERIOD).read_bytes())
        return cls(*(datetime.fromisoformat(kept[name]) for name in ("since", "until")))


def period(given: TabularData, today: date) -> Period:
    """What a spec asks for. `today`, or the source's last day, is where it has no end of its own.

    Raises: BadData: no day is left to train on.
    """
    last = min(today, source_of(given.source).until.date())
    until = last if given.until == "today" else given.until
    if (until - given.since).days <= given.test_days:
        raise BadData(
            f"dataset.since: {given.source} from {given.since} to {until} has no day to train on "
            f"beside the {given.test_days} that are kept for the comparison"
        )
    return Period(*(datetime.combine(day, time(), UTC) for day in (given.since, until)))


def build(
    name: str,
    given: TabularData,
    tables: Path,
    snapshot_id: str,
    out: Path,
    reference: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write training and test rows of the model `name` and their manifest into `out`.

    Args:
        tables: the snapshot's files, with the period that was asked for.
        reference: `columns_of` an older data set, against which no column may be rescaled.

    Raises:
        BadData: there are too few rows, or none to compare on.
        SchemaChanged, FeaturesMissing: columns are not what the feature definitions say.
    """
    import pandas as pd

    source, schema = source_of(given.source), feature_schema(given.service)
    events = pd.read_parquet(tables / source.events)
    _require_label(events, given)
    asked = Period.read(tables)
    settled = events[source.moment] < asked.until - source.settles_after
    wanted = [source.ids, *schema.asked, given.label]
    known = _sampled(events[settled & events[given.label].notna()], given.sample)[wanted]
    with open_features(tables) as store:
        rows = training_rows(store, given.service, known)
    later = rows[source.moment] >= asked.until - timedelta(days=given.test_days)
    parts = {TRAIN: rows[~later], TEST: rows[later]}
    _require_enough(parts, given, asked)
    others = (source.ids, given.label)
    for file, part in parts.items():
        require_fits(schema, part, source.ids, others=others, reference=reference)
        part.to_parquet(out / file, index=False, compression="zstd", coerce_timestamps="us")
    about = {
        "source": given.source,
        "snapshot_id": snapshot_id,
        "label": given.label,
        "since": asked.since.date().isoformat(),
        "until": asked.until.date().isoformat(),
        "test_days": given.test_days,
        COLUMNS: columns_of(given.service, parts[TRAIN]),
    }
    return seal(out, name, {file: len(part) for file, part in parts.items()}, about)


def _require_label(events: "pd.DataFrame", given: TabularData) -> None:
    from pandas.api.types import is_bool_dtype

    if given.label not in events:
        raise BadData(f"dataset.label: {given.source} has no column {given.label!r}")
    if not is_bool_dtype(events[given.label].dtype):
        fit = [repr(name) for name in events if is_bool_dtype(events[name].dtype)]
        raise BadData(
            f"dataset.label: {given.label!r} is {events[given.label].dtype}; true or false is "
            f"wanted, as {', '.join(fit) or 'none of its columns'} is"
        )


def _sampled(events: "pd.DataFrame", share: float) -> "pd.DataFrame":
    """Events evenly over their order, always the same ones."""
    import numpy as np

    places = np.floor(np.arange(len(events)) * share)
    return events[np.diff(places, prepend=-1) > 0]


def _require_enough(parts: "dict[str, pd.DataFrame]", given: TabularData, asked: Period) -> None:
    train, test = len(parts[TRAIN]), len(parts[TEST])
    if train < given.minimum or not test:
        raise BadData(
            f"{given.source} from {asked.since:%F} to {asked.until:%F}: {train} rows to train on "
            f"and {test} to compare on; at least {given.minimum} and 1 are wanted"
        )
