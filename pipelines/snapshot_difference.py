"""How two snapshots of one source differ: rows by their keys, columns, and the columns' values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.columns import distance
from pipelines.snapshots import Snapshot

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ColumnDifference:
    """A column before and after.

    Attributes:
        types: its types; None where it is not there.
        missing: shares of rows without a value.
        means: of numbers and truths; None of texts and times.
        distance: of the distributions, 0 to 1: Kolmogorov and Smirnov's of numbers and times, the
            total variation of texts.
    """

    name: str
    types: tuple[str | None, str | None]
    missing: tuple[float, float] = (0.0, 0.0)
    means: tuple[float, float] | None = None
    distance: float = 0.0


@dataclass(frozen=True, slots=True)
class TableDifference:
    """A table before and after; `changed` rows are in both, with other values."""

    file: str
    rows: tuple[int, int]
    added: int
    gone: int
    changed: int
    columns: tuple[ColumnDifference, ...]


def difference(before: Snapshot, after: Snapshot) -> list[TableDifference]:
    """Table by table. Raises ValueError for snapshots of two sources."""
    if before.manifest.name != after.manifest.name:
        raise ValueError(f"{before.manifest.name} and {after.manifest.name} are two sources")
    keys = before.source.keys
    return [
        _table(file, keys[file], before.folder / file, after.folder / file)
        for file in before.manifest.files
        if file in after.manifest.files
    ]


def _table(file: str, keys: Sequence[str], before: Path, after: Path) -> TableDifference:
    import pandas as pd

    old, new = pd.read_parquet(before), pd.read_parquet(after)
    old_marks, new_marks = _marks(old, keys), _marks(new, keys)
    both = old_marks.index.intersection(new_marks.index)
    shared = [name for name in old if name in new]
    names = [*old, *(name for name in new if name not in old)]
    same_columns = len(shared) == len(names)
    changed = (old_marks.loc[both] != new_marks.loc[both]).sum() if same_columns else len(both)
    return TableDifference(
        file,
        (len(old), len(new)),
        len(new_marks) - len(both),
        len(old_marks) - len(both),
        int(changed),
        tuple(_column(name, old, new) for name in names),
    )


def _marks(table: "pd.DataFrame", keys: Sequence[str]) -> "pd.Series":
    """A number for each row that other values would change, under the row's key."""
    import pandas as pd

    marks = pd.util.hash_pandas_object(table[sorted(table)], index=False).to_numpy()
    index = pd.MultiIndex.from_frame(table[list(keys)])
    return pd.Series(marks, index=index)


def _column(name: str, old: "pd.DataFrame", new: "pd.DataFrame") -> ColumnDifference:
    if name not in old:
        return ColumnDifference(name, (None, str(new[name].dtype)))
    if name not in new:
        return ColumnDifference(name, (str(old[name].dtype), None))
    one, other = old[name], new[name]
    types = (str(one.dtype), str(other.dtype))
    missing = (float(one.isna().mean()), float(other.isna().mean()))
    if types[0] == "object" or types[1] == "object":
        return ColumnDifference(name, types, missing, None, _variation(one, other))
    numbers, others = _numbers(one), _numbers(other)
    means = None
    if not types[0].startswith("datetime") and len(numbers) and len(others):
        means = (float(numbers.mean()), float(others.mean()))
    return ColumnDifference(name, types, missing, means, distance(numbers, others))


def _numbers(values: "pd.Series") -> Any:
    known = values.dropna()
    if str(values.dtype).startswith("datetime"):
        return known.astype("int64").to_numpy(dtype=float)
    return known.to_numpy(dtype=float)


def _variation(one: "pd.Series", other: "pd.Series") -> float:
    shares, others = (side.value_counts(normalize=True) for side in (one, other))
    return float(shares.subtract(others, fill_value=0).abs().sum() / 2)
