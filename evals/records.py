"""The records that evaluations, gates, drift and experiments share: frozen, without logic.

A `Case` is asked, an `Answer` comes back, scorers turn both into `Score`s, comparisons of two
subjects' scores into one `Verdict`, which promoters and triggers act on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to ask, and what is known of the right answer.

    Attributes:
        case_id: unique in its set.
        messages: OpenAI chat messages.
        expected: the right answer, in the form that the scorers want.
        tags: slices for reports.
        user_input, retrieved_contexts, reference: what a metric may need beside the answer, in
            Ragas' words: the question, the texts that were found for it, a good answer. None is
            not known; no contexts (an empty tuple) is known.
        schema: JSON Schema that an answer has to keep to.
    """

    case_id: str
    messages: tuple[Mapping[str, Any], ...]
    expected: Any
    tags: Mapping[str, str] = field(default_factory=dict)
    user_input: str | None = None
    retrieved_contexts: tuple[str, ...] | None = None
    reference: str | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a subject answered to a case.

    Attributes:
        text: the answer; empty if there is none.
        error: why there is none, or None.
        cost_usd: what the gateway charged for it; None where it does not say.
        target: who answered, as `upstream/model`.
        request_id: the request in the log.
    """

    case_id: str
    text: str
    latency_ms: float
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    cost_usd: float | None = None
    target: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of one answer. `value` is None where the scorer failed; `reason` says why, and may
    quote the answer; `quiet` says it in words that quote nothing, for what outlives the log."""

    case_id: str
    metric: str
    value: float | None
    reason: str | None = None
    quiet: str | None = None


class Decision(StrEnum):
    """What a verdict asks for. `hold`: not enough is known; `alert`: somebody should look."""

    PROMOTE = "promote"
    HOLD = "hold"
    REJECT = "reject"
    ALERT = "alert"


@dataclass(frozen=True, slots=True)
class MetricResult:
    """A metric of subject and baseline.

    Attributes:
        baseline, candidate: means.
        delta: candidate - baseline; ci_low, ci_high: interval around it.
        n: units (cases, users) that it rests on.
        passed: whether the gate's condition on it holds; None where it is not decided yet.
    """

    name: str
    baseline: float | None
    candidate: float | None
    delta: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a subject, against a baseline.

    Attributes:
        verdict_id: UUIDv7.
        subject, baseline: what was compared, such as `extractor-3f2a…` (an adapter) or `base`.
        reasons: sentences, the deciding one first.
        evidence: ids and links: dataset, training run, MLflow run, experiment.
    """

    verdict_id: str
    subject: str
    baseline: str
    decision: Decision
    metrics: tuple[MetricResult, ...]
    reasons: tuple[str, ...]
    evidence: Mapping[str, Any]
    created_at: datetime

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"created_at": self.created_at.isoformat()}
