"""Guardrails of an experiment: what a candidate must not worsen, whatever its users say of it.

A user's observation is its first request of the experiment that ended: whether it failed, whether
the answer declined, how long it took, what it cost. One request a user, since those of one user
hang together. Nobody has to give feedback for it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from evals.logged import answer_text
from evals.refusals import is_refusal
from gateway.records import Status
from gateway.section import Section

COLUMNS = ("status", "latency_ms", "cost_usd", "response")
NOBODYS_FAULT = frozenset((Status.CLIENT_DISCONNECTED, Status.INTERRUPTED))
STEPS = 200  # of a limit: what an interval costs grows with the number of different values
WAITED = frozenset((Status.OK, Status.TIMEOUT, Status.CLIENT_DISCONNECTED))


class Guardrail(Section):
    """One of them.

    Attributes:
        metric: `errors` and `refusals` are shares of users, `latency` is in seconds, `cost` in USD.
        margin: by how much the candidate's mean may be above the champion's, in that unit.
        limit: of latency and cost: a value above counts as this. Without it nothing could be said
            for sure of a mean.
    """

    metric: Literal["errors", "refusals", "latency", "cost"]
    margin: float = Field(0.0, ge=0)
    limit: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _limit_fits(self) -> "Guardrail":
        if (self.limit is None) != (self.metric in ("errors", "refusals")):
            wanted = "needs a limit" if self.limit is None else "is a share and has no limit"
            raise ValueError(f"{self.metric} {wanted}")
        if self.margin >= self.span:
            raise ValueError(f"margin: {self.margin} is not below {self.span}: it can never break")
        return self

    @property
    def span(self) -> float:
        """The largest mean that there can be."""
        return 1.0 if self.limit is None else self.limit

    def scaled(self, row: Mapping[str, Any]) -> float | None:
        """A request as a number from 0 (good) to 1 (bad); None if it says nothing of this."""
        status = row["status"]
        if self.metric == "errors":
            return None if status in NOBODYS_FAULT else float(status != Status.OK)
        if self.metric == "latency":  # who was kept waiting, also for nothing
            waited = row["latency_ms"] if status in WAITED else None
            return None if waited is None else self._share(waited / 1000)
        if status != Status.OK:
            return None
        if self.metric == "cost":
            return self._share(float(row["cost_usd"]))
        text = answer_text(row["response"])
        return None if text is None else float(is_refusal(text))

    def _share(self, value: float) -> float:
        return round(min(max(value, 0.0) / self.span, 1.0) * STEPS) / STEPS
