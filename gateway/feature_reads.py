"""Features at serving time: the newest rows of the online store, put beside what a request brings.

A value is the one that a training set would hold for the same keys and the same moment: one whose
row is older than its view's `ttl` then, or younger than the moment, is missing here as it is there.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore
from redis.exceptions import RedisError

from gateway.feature_schema import FeatureSchema, feature_schema

STAMP = "__ts"  # Feast's suffix of a feature's row time, seconds
KINDS: Mapping[str, str] = {"float64": "float64", "int64": "float64", "bool": "float64"}


class FeaturesUnavailable(RuntimeError):
    """The online store does not answer; the message has its own words."""


class OnlineFeatures:
    """Reads what one feature service names. Safe to use from several threads."""

    def __init__(self, store: FeatureStore, service: str) -> None:
        self._store = store
        self._service = store.get_feature_service(service)  # a look-up of it costs as a read does
        self.schema: FeatureSchema = feature_schema(service)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
        """A frame of all columns of the schema for rows that `schema.parse` gave.

        What a row brings is kept; the features that it lacks are read.

        Raises: FeaturesUnavailable.
        """
        wanted = [name for name in self.schema.features if any(name not in row for row in rows)]
        found = self._found(rows) if wanted else {}
        columns = {
            column.name: [
                row[column.name] if column.name in row else _known(found, column.name, place)
                for place, row in enumerate(rows)
            ]
            for column in self.schema.columns
        }
        return typed_frame(self.schema, columns)

    def _found(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        asked = {name: [row[name] for row in rows] for name in self.schema.asked}
        try:
            answer = self._store.get_online_features(features=self._service, entity_rows=asked)
        except (RedisError, OSError) as error:
            raise FeaturesUnavailable(f"the online store of features: {error}") from error
        found: dict[str, list[Any]] = answer.to_dict(include_event_timestamps=True)
        moments = [_moment(self.schema, row) for row in rows]
        for column in self.schema.columns:
            if column.ttl_seconds is not None:
                found[column.name] = [
                    value if stamp <= moment <= stamp + column.ttl_seconds else None
                    for value, stamp, moment in zip(
                        found[column.name], found[column.name + STAMP], moments, strict=True
                    )
                ]
        return found


def typed_frame(schema: FeatureSchema, columns: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """The columns in the schema's order as models see them: numbers float64, NaN where missing."""
    made: dict[str, Any] = {}
    for column in schema.columns:
        if column.name not in columns:
            continue
        values = columns[column.name]
        if column.type == "timestamp":
            made[column.name] = pd.to_datetime(pd.Series(values), utc=True).astype(
                "datetime64[us, UTC]"
            )
        elif column.type in KINDS:
            made[column.name] = np.array(values, dtype=KINDS[column.type])
        else:
            made[column.name] = pd.Series(values, dtype=object)
    return pd.DataFrame(made)


def _known(found: Mapping[str, list[Any]], name: str, place: int) -> Any:
    return found[name][place] if name in found else None


def _moment(schema: FeatureSchema, row: Mapping[str, Any]) -> float:
    given = row.get(schema.moment) if schema.moment else None
    moment: datetime = given if given is not None else datetime.now(UTC)
    return moment.timestamp()
