"""Slices of rows, such as the flights of one carrier: a model that is better on the whole may be
worse for some. A slice with too few rows says nothing; it is left out, and that is said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.classification import Array, Rows, Statistic, auc, least
from evals.cluster_bootstrap import Resamples
from evals.compare import Measured

LEAST_ROWS = 500
LEAST_OF_A_CLASS = 20
WORST = "worst_slice_auc"
NAMED = 5


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows with one value in one column, and the area under the curve of both subjects; None
    where there are too few rows to say."""

    column: str
    value: str
    rows: int
    positives: int
    baseline: float | None
    candidate: float | None

    @property
    def name(self) -> str:
        """As `carrier=UA`."""
        return f"{self.column}={self.value}"


def worst_slice(
    resamples: Resamples,
    baseline: Array,
    candidate: Array,
    columns: Mapping[str, Sequence[Any] | Array],
    least_rows: int = LEAST_ROWS,
) -> tuple[Measured, list[Slice]]:
    """The lowest area under the curve of any slice, of each subject; and all slices.

    Args:
        columns: the rows' values by column.
        least_rows: rows that a slice must have; it needs some of each class, too.
    """
    rows, found = resamples.rows, []
    sides: tuple[list[Statistic], list[Statistic]] = ([], [])
    for column, values in columns.items():
        texts = np.asarray(values).astype(str)
        for value in np.unique(texts):
            kept = np.flatnonzero(texts == value)
            own = rows.where(kept)
            pair = _curves(own, baseline[kept], candidate[kept], least_rows)
            for side, statistic in zip(sides, pair, strict=False):
                side.append(statistic)
            areas: list[float | None] = [float(one(own.whole)[0]) for one in pair] or [None, None]
            positives = int(own.labels.sum())
            found.append(Slice(column, str(value), len(own), positives, areas[0], areas[1]))
    if not sides[0]:
        note = f"no slice has {least_rows} rows and {LEAST_OF_A_CLASS} of each class"
        return Measured(WORST, None, None, len(rows), note=note), found
    note = _note(found)
    return resamples.measured(WORST, least(sides[0]), least(sides[1]), note), found


def _curves(rows: Rows, baseline: Array, candidate: Array, least_rows: int) -> list[Statistic]:
    """Both subjects' statistics; none where there are too few rows."""
    positives = rows.labels.sum()
    if len(rows) < least_rows or min(positives, len(rows) - positives) < LEAST_OF_A_CLASS:
        return []
    return [auc(rows, baseline), auc(rows, candidate)]


def _note(slices: Sequence[Slice]) -> str:
    known = [one for one in slices if one.candidate is not None]
    worst = min(known, key=lambda one: one.candidate or 0.0)
    text = f"the candidate's worst is {worst.name} ({worst.rows} rows)"
    left_out = [f"{one.name} ({one.rows})" for one in slices if one.candidate is None]
    if left_out:
        more = ", …" if len(left_out) > NAMED else ""
        text += f"; left out, with too few rows: {', '.join(left_out[:NAMED])}{more}"
    return text
