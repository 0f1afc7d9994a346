"""Training sets held against the columns that the feature definitions name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evals.columns import facts_of, findings
from gateway.feature_schema import FeatureSchema, feature_schema

if TYPE_CHECKING:
    import pandas as pd


class SchemaChanged(ValueError):
    """A training set is not what the definitions say, or what the one before held."""


def columns_of(service: str, frame: "pd.DataFrame") -> dict[str, Any]:
    """What a manifest keeps of a training set: the schema, and facts of each column's values."""
    schema = feature_schema(service)
    facts = {name: one.as_dict() for name, one in facts_of(frame, schema).items()}
    return schema.as_dict() | {"facts": facts}


def require_fits(
    schema: FeatureSchema,
    frame: "pd.DataFrame",
    ids: str,
    *,
    others: tuple[str, ...] = (),
    reference: Mapping[str, Any] | None = None,
) -> None:
    """Hold a training set against its schema and against an older one.

    Args:
        ids: the column that names a row.
        others: columns that are there beside the schema's, such as the label.
        reference: an older set's `columns_of`: nothing may be rescaled against it.

    Raises: SchemaChanged, with a line for each column: what is wrong and its first bad row.
    """
    facts = (reference or {}).get("facts", {})
    known = frame.drop(columns=[name for name in others if name in frame and name != ids])
    found = findings(schema, known, ids, facts)
    if found:
        raise SchemaChanged("\n".join(map(str, found)))
