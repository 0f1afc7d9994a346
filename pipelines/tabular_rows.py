"""The rows of a tabular data set as training and comparison want them: features as numbers, labels
as 0 and 1, the day of each. What cannot be learnt from is refused here, in words that name it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Array = Any  # numpy's arrays; its types are not known to the type checker
TRAIN, TEST = "train.parquet", "test.parquet"
NUMBERS = "bif"  # numpy's kinds of booleans, integers and floats


class BadData(ValueError):
    """Rows that no model can be learnt from or compared on; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TabularRows:
    """Rows in the order of time.

    Attributes:
        table: all columns.
        names: the features, in the model's order.
        labels: 0 or 1.
        days: day of each, `datetime64[D]`.
    """

    table: "pd.DataFrame"
    names: tuple[str, ...]
    labels: Array
    days: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> "pd.DataFrame":
        """What a model sees: float64, NaN is missing."""
        return self.table[list(self.names)].astype(float)

    def where(self, kept: Array) -> "TabularRows":
        """Some of the rows."""
        return TabularRows(self.table[kept], self.names, self.labels[kept], self.days[kept])

    def require_both_classes(self, where: str) -> None:
        """Raises BadData if there is nothing to tell apart."""
        positives = int(self.labels.sum())
        if positives in (0, len(self)):
            raise BadData(
                f"{where}: all {len(self)} rows are of one class ({int(positives > 0)}); "
                "there is nothing to learn"
            )


def read_rows(file: Path, names: Sequence[str], label: str, moment: str) -> TabularRows:
    """The rows of a data set's file that have a label.

    Raises: BadData: a column is missing, is no number, is infinite or has no value at all; a label
        is neither 0 nor 1; there is no row.
    """
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(file)
    for name in (*names, label, moment):
        if name not in table:
            raise BadData(f"{file.name}: column {name!r} is missing; it has {', '.join(table)}")
    table = table[table[label].notna()].sort_values(moment, kind="stable", ignore_index=True)
    if not len(table):
        raise BadData(f"{file.name}: no row has a value of {label!r}")
    for name in names:
        if table[name].isna().all():
            raise BadData(f"{file.name}: column {name!r} has no value in any of {len(table)} rows")
        if table[name].dtype.kind not in NUMBERS:
            raise BadData(
                f"{file.name}: column {name!r} is {table[name].dtype}, a number is wanted; make "
                "one of it in the feature definitions"
            )
        infinite = np.isinf(table[name].to_numpy(dtype=float)).sum()
        if infinite:
            raise BadData(
                f"{file.name}: column {name!r} is infinite in {infinite} of {len(table)} rows"
            )
    labels = _labels(file, table[label])
    days = table[moment].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[D]")
    return TabularRows(table, tuple(names), labels, days)


def _labels(file: Path, given: "pd.Series") -> Array:
    import numpy as np

    try:
        labels = given.astype(float).to_numpy()
    except (TypeError, ValueError):
        labels = np.full(len(given), np.nan)
    wrong = ~np.isin(labels, (0, 1))
    if wrong.any():
        shown = given[wrong].iloc[0]
        raise BadData(f"{file.name}: label {given.name!r} is {shown}; 0 or 1 is wanted")
    return labels
