"""Service levels in code: what a window of requests must be like, whatever the reference was like.

Each is an Evidently metric of one column with Evidently's test on it, and passes, fails or errs by
itself. What it says is a fact about the window, not a guess about the future: a limit belongs well
above what is normal. `drift.slas` in the configuration sets another limit by name, or null.

`SLAS` is the place to add one.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evals.windows import Frame

Condition = Literal["lt", "lte", "gt", "gte"]
SIGNS: Mapping[Condition, str] = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
# What goes wrong inside a metric of Evidently.
ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
LEAST_VALUES = 30


@dataclass(frozen=True, slots=True)
class Sla:
    """One service level.

    Attributes:
        metric: name of a class in `evidently.metrics`.
        column: of a window (`evals.windows`).
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
        return 1.0 if self.metric == "MeanValue" else math.inf


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


def slas_in_force(limits: Mapping[str, float | None]) -> list[Sla]:
    """`SLAS` with the limits that the configuration gives, without those that it switches off."""
    found = []
    for sla in SLAS:
        limit = limits.get(sla.name, sla.limit)
        if limit is not None:
            found.append(Sla(sla.name, sla.metric, sla.column, sla.condition, limit, sla.options))
    return found


def metric_of(sla: Sla) -> Any:
    """The metric with its test, as Evidently takes it."""
    from evidently import metrics, tests

    condition = getattr(tests, sla.condition)
    kind = getattr(metrics, sla.metric)
    return kind(column=sla.column, tests=[condition(sla.limit)], **dict(sla.options))


def judge_slas(slas: Sequence[Sla], window: Frame) -> list[Kept]:
    """Each of them on the window."""
    return [_judge(sla, window) for sla in slas]


def _judge(sla: Sla, window: Frame) -> Kept:
    try:
        values = window[sla.column].dropna()
        if len(values) < LEAST_VALUES:
            return Kept(sla, None, len(values), None, f"{len(values)} values: too few")
        value, status = _run(sla, values.to_frame())
    except ERRORS as error:
        return Kept(sla, None, 0, None, f"{type(error).__name__}: {error}", erred=True)
    if not math.isfinite(value):
        return Kept(sla, None, len(values), None, f"its value is {value}", erred=True)
    said = f"{value:.4g}, needs {SIGNS[sla.condition]} {sla.limit:g}"
    return Kept(sla, value, len(values), status == "SUCCESS", said)


def _run(sla: Sla, rows: Frame) -> tuple[float, str]:
    """The metric's value and the status of its test. A report of its own: one that errs takes no
    other along."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report

        definition = DataDefinition(numerical_columns=[sla.column])
        dataset = Dataset.from_pandas(rows, data_definition=definition)
        done = Report([metric_of(sla)]).run(dataset, None).dict()
    return float(done["metrics"][0]["value"]), str(done["tests"][0]["status"].value)
