"""Where the columns of a served version come from: a feature service, or every request brings them.

With a feature service a request brings keys and request columns, and the features that it lacks are
read from the online store (`gateway.feature_reads.OnlineFeatures`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from gateway.feature_reads import typed_frame
from gateway.feature_schema import Column, FeatureSchema, SchemaMismatch
from gateway.tabular_model import DESCRIPTION, ModelUnusable

if TYPE_CHECKING:
    import pandas as pd

# MLflow's types of a signature's columns, and ours.
TYPES = {
    "boolean": "bool", "integer": "int64", "long": "int64", "float": "float64",
    "double": "float64", "string": "string", "datetime": "timestamp",
}  # fmt: skip


class Columns(Protocol):
    """Columns by a schema, and how rows of them are completed."""

    schema: FeatureSchema

    def read(self, rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
        """All columns for rows that `schema.parse` gave.

        Raises: FeaturesUnavailable, SchemaMismatch.
        """


class GivenColumns:
    """The columns of a model's signature; every request brings them all."""

    def __init__(self, columns: Sequence[Column]):
        self.schema = FeatureSchema("", tuple(columns))

    def read(self, rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
        """The rows as a frame. Raises SchemaMismatch: a column is missing."""
        names = self.schema.features
        for name in names:
            if name not in rows[0]:
                raise SchemaMismatch("instances[0]", name, "is missing")
        return typed_frame(self.schema, {name: [row[name] for row in rows] for name in names})


def signature_columns(folder: Path) -> GivenColumns:
    """The columns in the signature of the model in `folder`, which has been read before.

    Raises: ModelUnusable: a column's type is none of ours.
    """
    described = yaml.safe_load((folder / DESCRIPTION).read_text())
    columns = []
    for one in json.loads(described["signature"]["inputs"]):
        if one.get("type") not in TYPES:
            raise ModelUnusable(
                f"{folder / DESCRIPTION}: column {one['name']!r} is {one.get('type')!r}; "
                f"one of {', '.join(TYPES)} is wanted"
            )
        columns.append(Column(one["name"], TYPES[one["type"]], "feature"))
    return GivenColumns(columns)
