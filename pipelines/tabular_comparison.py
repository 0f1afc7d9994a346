"""Champion and candidate on the same rows, which came later than all that either was fitted on.

Without a champion the comparison is with the base rate: everybody gets the share of positives of
the training rows. A model has to beat that before it answers anybody.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import orjson

from evals.classification import Rows, Statistic, auc, brier, calibration_error, f1, log_loss
from evals.cluster_bootstrap import Resamples
from evals.compare import Measured
from evals.gate import Measurement
from evals.slices import Slice, worst_slice
from gateway.tabular_model import TabularModel
from pipelines.leaks import leak
from pipelines.tabular_rows import Array, BadData, TabularRows
from pipelines.tabular_spec import TabularEvaluation

REPEATS = 3
MEGABYTE = 1_000_000
PREDICTIONS, SLICES = "predictions.parquet", "slices.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is compared: a loaded model with its folder, or neither for the base rate."""

    model: TabularModel | None
    folder: Path | None
    base_rate: float = 0.0

    def probabilities(self, rows: Any) -> Array:
        """Of the positive class, per row."""
        if self.model is None:
            return np.full(len(rows), self.base_rate)
        return self.model.probabilities(rows)

    @property
    def megabytes(self) -> float:
        """Of the model's files; nothing for the base rate."""
        if self.folder is None:
            return 0.0
        files = (file for file in self.folder.rglob("*") if file.is_file())
        return sum(file.stat().st_size for file in files) / MEGABYTE


@dataclass(frozen=True, slots=True)
class Compared:
    """What was measured of both, by metric; and by slice, for reports."""

    metrics: Mapping[str, Measurement]
    slices: list[Slice]
    predictions: Mapping[str, Array]

    def write(self, folder: Path, test: TabularRows) -> None:
        """Leave the predictions and the slices in `folder`."""
        import pandas as pd

        columns = {"day": test.days, "label": test.labels, **self.predictions}
        pd.DataFrame(columns).to_parquet(folder / PREDICTIONS, index=False)
        (folder / SLICES).write_bytes(orjson.dumps([asdict(one) for one in self.slices]))


def compare_models(
    champion: Subject,
    candidate: Subject,
    train: TabularRows,
    test: TabularRows,
    evaluation: TabularEvaluation,
) -> Compared:
    """Every metric of both on `test`. `train`: what the candidate was fitted on, for leaks.

    Raises: BadData: a slice's column is not there, or a model wants a column that is not.
    """
    for name in evaluation.slices:
        if name not in test.table:
            raise BadData(f"evaluation.slices: the test rows have no column {name!r}")
    try:
        before, after = (one.probabilities(test.table) for one in (champion, candidate))
    except ValueError as error:
        raise BadData(f"the test rows do not fit: {error}") from error
    rows = Rows.of(test.labels, test.days)
    resamples = Resamples.of(rows, seed=evaluation.seed, draws=evaluation.draws)
    functions: dict[str, Callable[[Rows, Array], Statistic]] = {
        "auc": auc,
        "brier": brier,
        "calibration_error": calibration_error,
        "log_loss": log_loss,
        "f1": lambda given, scores: f1(given, scores, evaluation.threshold),
    }
    metrics: dict[str, Measurement] = {
        name: resamples.measured(name, function(rows, before), function(rows, after))
        for name, function in functions.items()
    }
    slices: list[Slice] = []
    if evaluation.slices:
        columns = {name: test.table[name].to_numpy() for name in evaluation.slices}
        worst, slices = worst_slice(resamples, before, after, columns, evaluation.slice_rows)
        metrics[worst.name] = worst
    metrics["leak_auc"] = leak(train, test, resamples)
    metrics["latency_ms"] = _latencies(champion, candidate, test, evaluation.timed_rows)
    metrics["size_mb"] = _sizes(champion, candidate)
    return Compared(metrics, slices, {"champion": before, "candidate": after})


def _sizes(champion: Subject, candidate: Subject) -> Measured:
    before, after = champion.megabytes, candidate.megabytes
    return Measured("size_mb", before, after, 1, draws=(after - before,))


def _latencies(
    champion: Subject, candidate: Subject, test: TabularRows, count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds that each takes for each of some rows alone: the best of three, by turns."""
    picked = np.linspace(0, len(test) - 1, min(count, len(test))).astype(int)
    found: tuple[list[float], list[float]] = ([], [])
    for place in picked:
        row = test.table.iloc[[place]]
        best = [float("inf"), float("inf")]
        for _ in range(REPEATS):
            for side, subject in enumerate((champion, candidate)):
                begun = perf_counter()
                subject.probabilities(row)
                best[side] = min(best[side], 1000 * (perf_counter() - begun))
        for side, milliseconds in enumerate(best):
            found[side].append(milliseconds)
    return found
