"""What a language model's spec says in `dataset`, `training` and `evaluation`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from evals.contents import GOLDEN
from evals.scorers import SCORERS
from gateway.configuration import ConfigurationError
from gateway.section import Section
from pipelines.spec import Spec, section_of
from rlhf.training import FinetuneConfig

BASE_MODEL = "base_model"


class DatasetSection(Section):
    """What the data set is made of.

    Attributes:
        tenant: whose requests and feedback.
        positive_metric: a boolean metric whose `true` approves an answer as it is.
        minimum: examples that there must be.
        validation_share: share of the users that is kept for validation.
        seed: of the split.
        since: requests that arrived from then on; all by default.
    """

    tenant: str = "default"
    since: datetime | None = None
    positive_metric: str = "helpful"
    minimum: int = Field(40, ge=2)
    validation_share: float = Field(0.1, gt=0, lt=1)
    seed: int = 0


class EvaluationSection(Section):
    """What a candidate is asked, beside the champion, before it gets traffic.

    Attributes:
        cases: file of held-out cases: a name in evals/golden, or a path from the spec's folder.
        scorers: names of scorers.
        parameters: fields of every request, such as `max_tokens`.
        concurrency: requests at once.
        limit: only so many of the cases, from the first; all by default.
    """

    cases: str
    scorers: tuple[str, ...]
    parameters: dict[str, Any] = {}
    concurrency: int = Field(16, ge=1, le=256)
    limit: int | None = Field(None, ge=1)

    @property
    def path(self) -> Path:
        """The file of held-out cases."""
        golden = GOLDEN / self.cases
        return golden if golden.exists() else Path(self.cases)


@dataclass(frozen=True, slots=True)
class LLMSpec:
    """A spec's sections, read.

    Attributes:
        base_model: a converted model's name, or a path from the spec's folder to one in Hugging
            Face format; `training.base_model`.
        finetune: the other keys of `training`.
    """

    dataset: DatasetSection
    base_model: str
    finetune: FinetuneConfig
    evaluation: EvaluationSection


def llm_spec(spec: Spec) -> LLMSpec:
    """The sections of `spec`; ConfigurationError with a line for each mistake of a section."""
    training = dict(spec.training)
    base = training.pop(BASE_MODEL, None)
    if not isinstance(base, str):
        raise ConfigurationError(f"training.{BASE_MODEL}: name the model to train on")
    return LLMSpec(
        dataset=section_of(DatasetSection, spec.dataset, "dataset"),
        base_model=base,
        finetune=section_of(FinetuneConfig, training, "training"),
        evaluation=section_of(EvaluationSection, spec.evaluation, "evaluation"),
    )


def require_scorers(spec: Spec, evaluation: EvaluationSection) -> None:
    """ConfigurationError where a scorer is not known, or the gate asks for what none measures."""
    unknown = [name for name in evaluation.scorers if name not in SCORERS]
    if unknown:
        known = ", ".join(SCORERS)
        raise ConfigurationError(f"evaluation.scorers: no {unknown[0]!r} (there are: {known})")
    for condition in spec.gate:
        if condition.metric not in evaluation.scorers:
            measured = ", ".join(evaluation.scorers)
            raise ConfigurationError(
                f"gate: {condition.metric} is none of evaluation.scorers: {measured}"
            )
