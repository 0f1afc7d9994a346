"""The `drift` section of the configuration: whose traffic is watched, and how carefully."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from evals.prediction_plan import Predictions
from evals.prediction_signals import is_known
from evals.prediction_slas import PREDICTION_SLAS
from evals.signals import REACH, SIGNALS
from evals.slas import SLAS, Sla
from gateway.section import Name, Section


class Watched(Section):
    """One entry of `drift.subjects`: a prompt, each of its versions for itself, or a model.

    Attributes:
        prompt: name of a prompt, or
        model: a model's alias, for requests without a prompt.
        tenants: `together`, or `each` for itself.
        question: variable of the prompt that is the question; by default what the prompt's
            `evaluation.fields` calls `user_input`, else the last message of the user.
        passages: variable that holds what was retrieved; by default what the fields call
            `retrieved_contexts`, else what the application sent by that name.
        predictions: how a model's predictions are watched, if that is what it answers with.
    """

    prompt: Name | None = None
    model: Name | None = None
    tenants: Literal["together", "each"] = "together"
    question: str | None = None
    passages: str | None = None
    predictions: Predictions = Predictions()

    @model_validator(mode="after")
    def _limits_can_be_reached(self) -> "Watched":
        _check_limits("predictions.slas", self.predictions.slas, PREDICTION_SLAS)
        return self

    @model_validator(mode="after")
    def _one(self) -> "Watched":
        if (self.prompt is None) == (self.model is None):
            raise ValueError("give either prompt or model")
        return self


class DriftPlan(Section):
    """The whole section.

    Attributes:
        subjects: whose traffic is watched.
        least_rows: a window with fewer says so, and decides nothing.
        most_rows: newest rows of a window.
        hours: nothing older is in a window.
        alarms: false alarms per subject and month that are allowed, as a probability.
        text_rows: rows a side for the text classifier.
        vector_rows: rows a side for embeddings.
        vector_model: alias of the embedding model; none: embeddings are left out.
        api_key_env: environment variable with the gateway key for embeddings; else the local
            development key.
        least: by signal, the smallest change that matters, instead of the one in the code.
        slas: by SLA, another limit than the one in the code; null switches it off.
        keep_reports_days: HTML reports are removed after so many days.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    subjects: tuple[Watched, ...] = ()
    least_rows: int = Field(500, ge=100)
    most_rows: int = Field(50_000, ge=100, le=200_000)
    hours: float = Field(168, gt=0, le=8760)
    alarms: float = Field(0.05, gt=0, lt=1)
    text_rows: int = Field(10_000, ge=100, le=10_000)
    vector_rows: int = Field(2_000, ge=100, le=2_000)
    vector_model: Name | None = None
    api_key_env: str | None = None
    least: dict[str, float] = {}
    slas: dict[str, float | None] = {}
    keep_reports_days: int = Field(30, ge=1)

    @model_validator(mode="after")
    def _names_exist(self) -> "DriftPlan":
        known = {signal.name for signal in SIGNALS}
        unknown = [name for name in self.least if name not in known and not is_known(name)]
        if unknown:
            raise ValueError(_unknown("least", unknown, known))
        _check_limits("slas", self.slas, (*SLAS, *PREDICTION_SLAS))
        return self

    @model_validator(mode="after")
    def _can_be_reached(self) -> "DriftPlan":
        if self.least_rows > self.most_rows:
            raise ValueError(f"least_rows: {self.least_rows} is more than most_rows")
        for signal in SIGNALS:
            least, reach = self.least.get(signal.name, signal.least), REACH[signal.kind]
            if not 0 <= least < reach:
                said = f"from 0 to below {reach:g}" if reach < math.inf else "0 or more"
                raise ValueError(f"least.{signal.name}: {least:g}: a change is {said}")
        for name in filter(is_known, self.least):
            if not 0 <= self.least[name] < 1:
                raise ValueError(
                    f"least.{name}: {self.least[name]:g}: a change is from 0 to below 1"
                )
        return self


def _check_limits(key: str, limits: Mapping[str, float | None], slas: Sequence[Sla]) -> None:
    """Raises ValueError for a limit of no service level, or one that says nothing."""
    unknown = [name for name in limits if name not in {sla.name for sla in slas}]
    if unknown:
        raise ValueError(_unknown(key, unknown, {sla.name for sla in slas}))
    for sla in slas:
        limit = limits.get(sla.name)
        if limit is not None and not 0 <= limit <= sla.most:
            said = f"from 0 to {sla.most:g}" if sla.most < math.inf else "0 or more"
            raise ValueError(f"{key}.{sla.name}: {limit:g}: a limit is {said}")


def _unknown(key: str, names: Iterable[str], known: Iterable[str]) -> str:
    there = ", ".join(sorted(known))
    return f"{key}: {', '.join(sorted(names))}: unknown (there are: {there})"
