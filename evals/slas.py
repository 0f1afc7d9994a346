"""Service levels in code: what a window of requests must be like, whatever the reference was like.

Each is an Evidently metric of one column with Evidently's test on it, and passes, fails or errs by
itself. What it says is a fact about the window, not a guess about the future: a limit belongs well
above what is normal. `drift.slas` in the configuration sets another limit by name, or null.

`SLAS` is the place to add one, `evals.prediction_slas` has those of predictions.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evals.windows import Frame

Condition = Literal["lt", "lte", "gt", "gte"]
SIGNS: Mapping[Condition, str] = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
# What goes wrong inside a metric of Evidently.
ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
LEAST_VALUES = 30
# Metrics of counts, whose share is tested; of labels beside probabilities; of all columns beside
# the reference's.
MISSING, DRIFTED = "MissingValueCount", "DriftedColumnsCount"
SHARES = frozenset((MISSING, DRIFTED))
CLASSIFICATION = frozenset(("F1Score", "Precision", "Recall", "RocAuc", "LogLoss"))
TARGET, PROBABILITY = "outcome", "probability"  # TARGET: "yes" or "no"
ALL = ""  # the column of what is no single column's


@dataclass(frozen=True, slots=True)
class Sla:
    """One service level.

    Attributes:
        metric: name of a class in `evidently.metrics`.
        column: of a window (`evals.windows`, `evals.prediction_window`); `ALL` for every feature.
        condition, limit: what the metric's value must be.
        options: further arguments of the metric.
    """

    name: str
    metric: str
    column: str
    condition: Condition
    limit: float
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def most(self) -> float:
        """The largest limit that says something: of a share, 1."""
        return math.inf if self.metric in ("QuantileValue", "LogLoss") else 1.0

    @property
    def columns(self) -> Sequence[str]:
        """What it is judged on."""
        if self.metric in CLASSIFICATION:
            return TARGET, PROBABILITY
        columns: Sequence[str] = dict(self.options).get("columns", (self.column,))
        return columns


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one. `passed` is None where it erred, or had too few values; `reason` says
    which."""

    sla: Sla
    value: float | None
    rows: int
    passed: bool | None
    reason: str
    erred: bool = False


SLAS: Sequence[Sla] = (
    Sla("sla_failed", "MeanValue", "failed", "lt", 0.05),
    Sla("sla_no_answer", "MeanValue", "no_answer", "lt", 0.05),
    Sla("sla_refused", "MeanValue", "answer_refused", "lt", 0.5),
    Sla("sla_retrieval_empty", "MeanValue", "retrieval_empty", "lt", 0.5),
    Sla("sla_answer_words", "QuantileValue", "answer_words", "gte", 1, (("quantile", 0.05),)),
    Sla("sla_latency_p95", "QuantileValue", "latency_ms", "lt", 60_000, (("quantile", 0.95),)),
)


def slas_in_force(limits: Mapping[str, float | None], slas: Sequence[Sla] = SLAS) -> list[Sla]:
    """`slas` with the limits that the configuration gives, without those that it switches off."""
    found = []
    for sla in slas:
        limit = limits.get(sla.name, sla.limit)
        if limit is not None:
            found.append(replace(sla, limit=limit))
    return found


def metric_of(sla: Sla) -> Any:
    """The metric with its test, as Evidently takes it."""
    from evidently import metrics, tests

    condition = getattr(tests, sla.condition)(sla.limit)
    kind = getattr(metrics, sla.metric)
    given = {"share_tests" if sla.metric in SHARES else "tests": [condition], **dict(sla.options)}
    if sla.metric not in CLASSIFICATION and sla.column != ALL:
        given["column"] = sla.column
    return kind(**given)


def judge_slas(slas: Sequence[Sla], window: Frame, reference: Frame = None) -> list[Kept]:
    """Each of them on the window; one that needs a reference is left out without."""
    return [
        _judge(sla, window, reference)
        for sla in slas
        if sla.metric != DRIFTED or reference is not None
    ]


def _judge(sla: Sla, window: Frame, reference: Frame) -> Kept:
    try:
        rows = _rows(sla, window)
        if len(rows) < LEAST_VALUES:
            return Kept(sla, None, len(rows), None, f"{len(rows)} values: too few")
        value, status = _run(sla, rows, _rows(sla, reference) if sla.metric == DRIFTED else None)
    except ERRORS as error:
        return Kept(sla, None, 0, None, f"{type(error).__name__}: {error}", erred=True)
    if not math.isfinite(value):
        return Kept(sla, None, len(rows), None, f"its value is {value}", erred=True)
    said = f"{value:.4g}, needs {SIGNS[sla.condition]} {sla.limit:g}"
    return Kept(sla, value, len(rows), status == "SUCCESS", said)


def _rows(sla: Sla, window: Frame) -> Frame:
    """The rows that it is judged on, with its columns alone."""
    if sla.metric in CLASSIFICATION:
        return window[list(sla.columns)].dropna()
    if sla.metric not in SHARES:
        return window[sla.column].dropna().to_frame()
    return window[window[PROBABILITY].notna()][list(sla.columns)]


def classification() -> Any:
    """What Evidently is told where outcomes are compared with probabilities."""
    from evidently import BinaryClassification, DataDefinition

    task = BinaryClassification(target=TARGET, prediction_probas=PROBABILITY, pos_label="yes")
    return DataDefinition(classification=[task])


def columns_as(labels: Mapping[str, bool], texts: Sequence[str] = ()) -> Any:
    """What Evidently is told of columns: by name whether one holds labels, not numbers; and those
    that hold texts."""
    from evidently import DataDefinition

    return DataDefinition(
        text_columns=list(texts),
        categorical_columns=[name for name, one in labels.items() if one and name not in texts],
        numerical_columns=[name for name, one in labels.items() if not one and name not in texts],
    )


def _run(sla: Sla, rows: Frame, reference: Frame | None) -> tuple[float, str]:
    """The metric's value and the status of its test. A report of its own: one that errs takes no
    other along."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import Dataset, Report

        if sla.metric in CLASSIFICATION:
            definition = classification()
        else:
            definition = columns_as({name: rows[name].dtype == object for name in rows})
        sides = [
            None if one is None else Dataset.from_pandas(one, data_definition=definition)
            for one in (rows, reference)
        ]
        done = Report([metric_of(sla)]).run(*sides).dict()
    value = done["metrics"][0]["value"]
    share = value["share"] if sla.metric in SHARES else value
    return float(share), str(done["tests"][0]["status"].value)
