"""The sections of a tabular model's spec: what it is trained on, how, and what measures it."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from evals.slices import WORST
from gateway.configuration import ConfigurationError
from gateway.section import Name, Section
from pipelines.spec import Spec

Day = Annotated[date, Field(ge=date(1900, 1, 1), le=date(2200, 1, 1))]
MOST, SEEDS = 10**9, 2**32
Algorithm = Literal["logistic", "histogram", "xgboost"]
LEAK = "leak_auc"
METRICS = (
    "auc", "brier", "calibration_error", "log_loss", "f1", LEAK, "latency_ms", "size_mb",
)  # fmt: skip


class TabularData(Section):
    """Which rows, with which features.

    Attributes:
        source: of the raw events, such as `flights`.
        service: feature service that names the features.
        label: boolean column of the events that is to be predicted.
        since: first day.
        until: the day after the last; `today`: whatever is known when a pass begins, so that a
            retraining that drift asked for learns from what came since.
        test_days: the last days, which are kept for the comparison.
        sample: share of the rows to keep, evenly over time; all by default.
        minimum: rows to train on that there must be.
    """

    source: Name
    service: Name
    label: Name
    since: Day
    until: Day | Literal["today"]
    test_days: int = Field(ge=1, le=10_000)
    sample: float = Field(1.0, gt=0, le=1)
    minimum: int = Field(1000, ge=10, le=MOST)


class TabularTraining(Section):
    """What is tried, and how a model is chosen.

    Attributes:
        candidates: algorithms.
        search: trials of each; the first takes fixed parameters, the others are drawn at random.
        seed: of the draws and the algorithms.
        validation_share: share of the training days, the last ones before `calibration_share`, on
            which trials are compared.
        calibration: how probabilities are brought in line with the last `calibration_share` of the
            training days, which nothing was fitted on.
    """

    candidates: tuple[Algorithm, ...] = Field(("logistic", "histogram", "xgboost"), min_length=1)
    search: int = Field(4, ge=1, le=100)
    seed: int = Field(0, ge=0, lt=SEEDS)
    validation_share: float = Field(0.15, gt=0, lt=0.5)
    calibration_share: float = Field(0.15, gt=0, lt=0.5)
    calibration: Literal["sigmoid", "none"] = "sigmoid"


class TabularEvaluation(Section):
    """How champion and candidate are measured on the days kept for it.

    Attributes:
        slices: columns whose values make slices.
        slice_rows: rows that a slice must have.
        threshold: probability from which on F1 takes it as a yes.
        draws: of the bootstrap.
        seed: of the bootstrap.
        timed_rows: rows that each model is asked one by one.
    """

    slices: tuple[Name, ...] = ()
    slice_rows: int = Field(500, ge=1, le=MOST)
    threshold: float = Field(0.5, gt=0, lt=1)
    draws: int = Field(1000, ge=100, le=10_000)
    seed: int = Field(0, ge=0, lt=SEEDS)
    timed_rows: int = Field(200, ge=2, le=10_000)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all that is measured."""
        return (*METRICS, WORST) if self.slices else METRICS


class TabularSpec(Section):
    """A tabular model's sections, validated."""

    dataset: TabularData
    training: TabularTraining = TabularTraining()
    evaluation: TabularEvaluation = TabularEvaluation()

    @model_validator(mode="after")
    def _days(self) -> "TabularSpec":
        if self.dataset.until == "today":
            return self  # known when a pass begins
        days = (self.dataset.until - self.dataset.since).days
        if days <= 0:
            raise ValueError(
                f"dataset.until: {self.dataset.until} is not after since, {self.dataset.since}"
            )
        if days <= self.dataset.test_days:
            raise ValueError(
                f"dataset.test_days: {self.dataset.test_days} of the {days} days from since to "
                "until are kept for the comparison, which leaves none to train on"
            )
        return self


def sections(spec: Spec) -> TabularSpec:
    """The sections of `spec`. Raises ConfigurationError with a line for each mistake."""
    given: dict[str, Any] = {
        "dataset": spec.dataset,
        "training": spec.training,
        "evaluation": spec.evaluation,
    }
    try:
        return TabularSpec.model_validate(given)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc'])) or 'spec'}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigurationError("\n".join(lines)) from error
