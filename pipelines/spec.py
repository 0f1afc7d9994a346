"""The spec of a model: one YAML file says what it is trained on, how, what judges it and how it is
tried on live traffic. A new model is a new file, never a change to the pipelines."""

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from evals.contents import GOLDEN
from evals.gate import Condition
from gateway.configuration import ConfigurationError
from gateway.section import Name, Section
from pipelines.plan import Plan

SPECS = Path(__file__).parent / "specs"


class DatasetSpec(Section):
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


class EvaluationSpec(Section):
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


class Spec(Section):
    """One model.

    Attributes:
        name: its name in the registry.
        kind: which functions train and serve it.
        alias: the gateway's alias whose traffic teaches it and is moved to it.
        base_model: a converted model's name, or a path from the spec's folder to one in Hugging
            Face format.
        training: fields of the kind's training configuration.
        gate: conditions that a candidate must meet.
        experiment: how it is tried on live traffic.
    """

    name: Name
    kind: str
    alias: Name
    base_model: str
    dataset: DatasetSpec = DatasetSpec()
    training: dict[str, Any] = {}
    evaluation: EvaluationSpec
    gate: tuple[Condition, ...]
    experiment: Plan

    @property
    def cases_path(self) -> Path:
        """The file of held-out cases."""
        golden = GOLDEN / self.evaluation.cases
        return golden if golden.exists() else Path(self.evaluation.cases)

    def text(self) -> str:
        """As YAML; the same spec gives the same text."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=True)


def load_spec(path: Path) -> Spec:
    """Read and validate the spec at `path`, or the packaged one of that name.

    Raises: ConfigurationError with a line for each mistake.
    """
    packaged = SPECS / f"{path.name}.yaml"
    found = packaged if not path.is_file() and packaged.exists() else path
    try:
        raw = yaml.safe_load(found.read_text())
        return _placed(Spec.model_validate(raw), found.absolute().parent)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(entry.stem for entry in SPECS.glob("*.yaml")))
        raise ConfigurationError(
            f"{path}: not a spec that can be read ({error}); packaged ones: {known}"
        ) from error
    except ValidationError as error:
        lines = [
            f"{found}: {'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigurationError("\n".join(lines)) from error


def _placed(spec: Spec, folder: Path) -> Spec:
    """The spec with its paths made absolute: stages read it in another folder."""
    base, evaluation = spec.base_model, spec.evaluation
    if (folder / base / "config.json").exists():
        base = str(folder / base)
    if not (GOLDEN / evaluation.cases).exists():
        evaluation = evaluation.model_copy(update={"cases": str(folder / evaluation.cases)})
    return spec.model_copy(update={"base_model": base, "evaluation": evaluation})
