"""Features of tabular models: rows for training as they were known at each event, and the newest
ones put into the online store for serving. Both come from the same Parquet files through the same
definitions (`feature_repo/`), so a value that a model learnt from is the value it is asked with.

Feast's DuckDB store does the joins. It needs a `ttl` on every view: only that keeps it from laying
every event beside every row of its entity.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.feature_schema import FeatureSchema, feature_schema
from gateway.feature_store import REPOSITORY, apply, connection_string, definitions

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore

EVENT_TIMESTAMP, PLACE = "event_timestamp", "place"
LONGEST = timedelta(days=365)  # how far back a row is looked for that counts for ever


class FeaturesMissing(ValueError):
    """A table that the definitions read is not there, or an event lacks what they are joined by."""


@contextmanager
def open_features(tables: Path, redis_url: str | None = None) -> "Iterator[FeatureStore]":
    """The definitions over the Parquet files in `tables`, until the end of the block.

    It has a registry of its own: other processes read the same definitions over other tables.

    Args:
        redis_url: the online store that `materialise` fills; without one it is a file that goes.

    Raises: FeaturesMissing: a table is not in `tables`.
    """
    from feast import FeatureStore, FeatureView, RepoConfig

    found = definitions(REPOSITORY)
    views = [one for one in found if isinstance(one, FeatureView) and _is_file(one)]
    for view in views:
        _anchor(view, tables)
    with tempfile.TemporaryDirectory(prefix="llmops-features-") as folder:
        online: dict[str, Any] = {"type": "sqlite", "path": f"{folder}/online.db"}
        if redis_url is not None:
            # What is put there is meant to be there, also if it is older: a replay begins again.
            address = connection_string(redis_url)
            online = {"type": "redis", "connection_string": address, "skip_dedup": True}
        configuration = RepoConfig(
            project="llmops",
            provider="local",
            registry={"path": f"{folder}/registry.db", "cache_ttl_seconds": 0},
            online_store=online,
            offline_store={"type": "duckdb"},
            entity_key_serialization_version=3,
            repo_path=REPOSITORY,
        )
        store = FeatureStore(config=configuration)
        apply(store, found)
        try:
            yield store
        finally:
            _let_go()


def training_rows(store: "FeatureStore", service: str, events: "pd.DataFrame") -> "pd.DataFrame":
    """`events`, in their order, with the service's features as they were known at each event.

    Args:
        events: a row each, with the keys and request columns of the service; other columns stay.

    Raises: FeaturesMissing: a key or a request column is missing, in the frame or in a row.
    """
    schema = feature_schema(service)
    if schema.moment is None:
        raise FeaturesMissing(f"feature service {service}: no tag `moment` names its time column")
    _require(schema, events)
    asked = events[list(schema.asked)].reset_index(drop=True)
    asked = asked.assign(**{EVENT_TIMESTAMP: asked[schema.moment], PLACE: asked.index})
    with _quiet():
        job = store.get_historical_features(asked, store.get_feature_service(service))
        joined = job.to_df().sort_values(PLACE)
    features = {name: joined[name].to_numpy() for name in schema.features}
    return events.reset_index(drop=True).assign(**features)


def materialise(store: "FeatureStore", until: datetime, views: Sequence[str] = ()) -> list[str]:
    """Put each key's newest row up to `until` into the online store; all views by default.

    Returns: the names of the views.
    """
    listed = [view for view in store.list_batch_feature_views() if view.batch_source is not None]
    chosen = [view for view in listed if not views or view.name in views]
    for view in chosen:
        with _quiet():
            store.materialize(until - (view.ttl or LONGEST), until, feature_views=[view.name])
    return [view.name for view in chosen]


@contextmanager
def _quiet() -> Iterator[None]:
    """Feast prints what it does, and its DuckDB store calls what DuckDB has renamed."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _let_go() -> None:
    """Close the DuckDB behind the store; it holds memory, and complains where a process ends."""
    import ibis

    if ibis.options.default_backend is not None:
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None


def _is_file(view: Any) -> bool:
    from feast import FileSource

    return isinstance(view.batch_source, FileSource)


def _anchor(view: Any, tables: Path) -> None:
    """Feast's DuckDB store reads paths from the working folder; make them absolute."""
    path = tables / Path(view.batch_source.path).name
    if not path.exists():
        raise FeaturesMissing(f"{path}: is not there; make the tables: llmops data snapshot")
    view.batch_source.file_options.uri = str(path.absolute())


def _require(schema: FeatureSchema, events: "pd.DataFrame") -> None:
    for name in schema.asked:
        if name not in events:
            raise FeaturesMissing(f"events: no column {name!r}, which {schema.service} needs")
        if events[name].isna().any():
            row = int(events[name].isna().to_numpy().argmax())
            raise FeaturesMissing(f"events: row {row} has no {name!r}")
