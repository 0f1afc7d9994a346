"""The plan of an experiment: what is measured, who takes part, when it is decided.

Invariant: a plan is `settled` against the declared metrics before anything starts, and is kept with
the experiment as it was then: a later change of the configuration does not move its bounds.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from gateway.configuration import ConfigurationError, Metric
from gateway.section import Name, Section
from pipelines.guardrails import Guardrail
from pipelines.losses import brier

PLANS = Path(__file__).parent / "plans"


class Plan(Section):
    """How a candidate is compared with the champion on live traffic.

    A user's observation is the mean of its first `feedback_per_user` pieces of feedback.

    Attributes:
        metric: a declared feedback metric on requests, boolean or float with both bounds.
        loss: the metric is the label of a prediction, and what counts is how far the answer's
            probability was from it: `brier`, the square of that.
        matures_hours: feedback counts if it came within so many hours of its request, and from
            then on. Where some outcomes are known later than others (a flight that is late), those
            heard at any moment would else be no fair sample. 0: it counts when it comes.
        optimize: which direction is good; as the metric is declared, by default.
        minimum, maximum: bounds of the metric's values; as declared, by default.
        weight: share of the users that get the candidate.
        alpha: chance of ever calling equal arms different.
        margin: by how much the arms must differ, in the metric's unit.
        minimum_users: users of each arm that must have been heard before anything is decided.
        maximum_users: users heard in both arms together, at which it ends undecided.
        maximum_hours: age at which it ends undecided.
        feedback_per_user: pieces of feedback that make one observation.
        guardrails: what the candidate must not worsen, whatever the users say of it.
        holdback: share of the users who keep the former champion when the candidate has won, while
            the guardrails and the metric are watched on; 0: nobody is held back.
        watch_hours: age at which that ends.
        watches: the experiment whose winner is watched; never set by hand.
    """

    metric: Name
    loss: Literal["brier"] | None = None
    matures_hours: float = Field(0.0, ge=0)
    optimize: Literal["min", "max"] | None = None
    minimum: float | None = None
    maximum: float | None = None
    weight: float = Field(0.5, gt=0, lt=1)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    margin: float = Field(0.0, ge=0)
    minimum_users: int = Field(10, ge=1)
    maximum_users: int = Field(10_000, ge=2)
    maximum_hours: float = Field(168, gt=0)
    feedback_per_user: int = Field(1, ge=1, le=1000)
    guardrails: tuple[Guardrail, ...] = ()
    holdback: float = Field(0.0, ge=0, lt=1)
    watch_hours: float = Field(24, gt=0)
    watches: str | None = None

    @model_validator(mode="after")
    def _bounds_fit(self) -> "Plan":
        if self.maximum_users < 2 * self.minimum_users:
            raise ValueError(
                "maximum_users counts both arms: it must be at least twice minimum_users"
            )
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError("minimum must be below maximum")
        names = [one.metric for one in self.guardrails]
        if len(set(names)) != len(names):
            raise ValueError("guardrails: each metric once")
        return self

    def settled(self, metrics: Mapping[str, Metric]) -> "Plan":
        """The plan with direction and bounds filled in from the declared metrics.

        Raises:
            ConfigurationError: the metric is not declared, or an experiment cannot rest on it.
        """
        metric = metrics.get(self.metric)
        if metric is None:
            known = ", ".join(sorted(metrics)) or "none"
            raise ConfigurationError(
                f"metric: no metric {self.metric!r} is declared under feedback.metrics "
                f"(there are: {known})"
            )
        if self.loss is not None and metric.type != "boolean":
            raise ConfigurationError(
                f"loss: {self.metric} is {metric.type}; the label of a prediction is a boolean"
            )
        low, high = _bounds(self, metric)
        if self.margin >= high - low:
            raise ConfigurationError(
                f"margin: {self.margin} is not below the span of {self.metric}, {low} to {high}"
            )
        return self.model_copy(
            update={
                "optimize": self.optimize or ("min" if self.loss else metric.optimize),
                "minimum": low,
                "maximum": high,
            }
        )

    def watching(self, experiment_id: str) -> "Plan":
        """The plan by which the winner of an experiment of this plan is watched. Nobody who had
        the candidate loses it."""
        return self.model_copy(
            update={
                "weight": max(1 - self.holdback, self.weight),
                "maximum_hours": self.watch_hours,
                "holdback": 0.0,
                "watches": experiment_id,
            }
        )

    @property
    def span(self) -> float:
        """Width of the metric's range, in its unit. Of a settled plan only."""
        low, high = self._range()
        return high - low

    def in_time(self, asked_at: datetime, said_at: datetime) -> bool:
        """Whether feedback of `said_at` on a request of `asked_at` counts, now or later."""
        return self.matures_hours == 0 or said_at <= self.matures_at(asked_at)

    def matures_at(self, asked_at: datetime) -> datetime:
        """When feedback on a request of `asked_at` counts."""
        return asked_at + timedelta(hours=self.matures_hours)

    def scaled(self, value: Any, probability: float | None = None) -> float | None:
        """A piece of feedback as a number from 0 (bad) to 1 (good); None if it is no such value.

        Args:
            probability: what the answer said, where the plan has a loss.
        """
        if self.loss is not None:
            value = brier(probability, value)
        if not isinstance(value, bool | int | float):
            return None
        low, high = self._range()
        if not low <= value <= high:
            return None
        share = (float(value) - low) / (high - low)
        return 1 - share if self.optimize == "min" else share

    def unscaled(self, share: float) -> float:
        """The metric's value for a number from 0 (bad) to 1 (good)."""
        low, high = self._range()
        return low + (high - low) * (1 - share if self.optimize == "min" else share)

    @property
    def measured(self) -> str:
        """Name of what is compared."""
        return self.metric if self.loss is None else f"{self.metric}_{self.loss}"

    def _range(self) -> tuple[float, float]:
        if self.minimum is None or self.maximum is None or self.optimize is None:
            raise ValueError(f"the plan on {self.metric} was not settled against the metrics")
        return self.minimum, self.maximum


def parse_plan(raw: Any, origin: str = "plan") -> Plan:
    """Validate a plan's keys; ConfigurationError has one line for each mistake."""
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"{origin}: {'.'.join(map(str, item['loc'])) or 'plan'}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigurationError("\n".join(lines)) from error


def load_plan(path: Path) -> Plan:
    """Read and validate the YAML file at `path`."""
    try:
        return parse_plan(yaml.safe_load(path.read_text()), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: not a plan that can be read: {error}") from error


def _bounds(plan: Plan, metric: Metric) -> tuple[float, float]:
    if metric.level != "request":
        raise ConfigurationError(
            f"metric: {plan.metric} is given to episodes; an experiment counts feedback on requests"
        )
    if metric.type == "boolean":
        return 0.0, 1.0
    if metric.type != "float":
        raise ConfigurationError(
            f"metric: {plan.metric} is {metric.type}; an experiment needs a boolean or a float"
        )
    low = metric.minimum if plan.minimum is None else plan.minimum
    high = metric.maximum if plan.maximum is None else plan.maximum
    if low is None or high is None or low >= high:
        raise ConfigurationError(
            f"metric: {plan.metric} needs a minimum and a maximum, where it is declared or in the "
            "plan; without them nothing can be said for sure of its mean"
        )
    return low, high
