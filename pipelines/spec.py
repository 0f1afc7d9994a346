"""The spec of a model: one YAML file says what it is trained on, how, what judges it and how it is
tried on live traffic. A new model is a new file, never a change to the pipelines.

What stands in `dataset`, `training` and `evaluation` is the kind's business: it reads them with
`section_of`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from evals.gate import Condition
from gateway.configuration import ConfigurationError
from gateway.section import Name, Section
from pipelines.plan import Plan

SPECS = Path(__file__).parent / "specs"
ModelName = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
PLACED = ("dataset", "training", "evaluation")
T = TypeVar("T")


class Spec(Section):
    """One model.

    Attributes:
        name: its name in the registry.
        kind: which functions train and serve it.
        alias: the gateway's alias whose traffic is moved to it.
        dataset: what it is trained on, as its kind wants it said.
        training: how.
        evaluation: what a candidate is measured on, beside the champion, before it gets traffic.
        gate: conditions that a candidate must meet.
        experiment: how it is tried on live traffic.
        approval: whether a candidate that won is promoted by itself, or waits for a person.
    """

    name: ModelName
    kind: str
    alias: Name
    dataset: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    gate: tuple[Condition, ...]
    experiment: Plan
    approval: Literal["automatic", "manual"] = "automatic"

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
        orjson.dumps(raw, default=str)  # as runs keep it
        return _placed(Spec.model_validate(raw), found.absolute().parent)
    except orjson.JSONEncodeError as error:
        raise ConfigurationError(f"{found}: {error}") from error
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


def section_of(kind: type[T], given: Mapping[str, Any], name: str) -> T:
    """A section of a spec, called `name`, as `kind`: a pydantic model or a dataclass.

    Raises: ConfigurationError with a line for each mistake.
    """
    known = TypeAdapter(kind).json_schema()["properties"]
    lines = [
        f"{name}.{key}: no such key (there are: {', '.join(known)})"
        for key in given
        if key not in known
    ]
    try:
        made = TypeAdapter(kind).validate_python({k: v for k, v in given.items() if k in known})
    except ValidationError as error:
        lines += [
            f"{'.'.join(map(str, (name, *item['loc'])))}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
    if lines:
        raise ConfigurationError("\n".join(lines))
    return made


def _placed(spec: Spec, folder: Path) -> Spec:
    """The spec with its paths made absolute: stages read it in another folder.

    A path is a text with a slash or a suffix that names something that is there, seen from the
    spec's folder.
    """

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(one) for name, one in value.items()}
        if isinstance(value, list):
            return [placed(one) for one in value]
        if isinstance(value, str) and ("/" in value or Path(value).suffix):
            there = str(folder / value)
            return there if os.path.exists(there) else value
        return value

    return spec.model_copy(update={name: placed(getattr(spec, name)) for name in PLACED})
