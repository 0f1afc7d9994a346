"""The kinds of model that take the lifecycle. A kind is a few plain functions, not a class tree;
the lifecycle calls them and never asks which kind it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.gate import Values
from evals.records import Answer, Case
from pipelines.installation import Installation
from pipelines.manifest import Manifest
from pipelines.spec import Spec

Say = Callable[[int, str], None]
LogMetrics = Callable[[int, Mapping[str, float]], None]
Measurements = Mapping[str, tuple[Values, Values]]  # or Measured, once there is one
Facts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate that was trained.

    Attributes:
        served_name: the name that it is served by; made from its content, so never reused.
        digest: SHA-256 of what was learnt.
        path: folder of its files.
        base_model, base_digest: what it was trained on top of; empty if it stands alone.
        metrics: of the training itself, such as the last loss.
    """

    served_name: str
    digest: str
    path: Path
    base_model: str
    base_digest: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelKind:
    """How models of one kind are made and reached.

    Folders that a function is to fill (`out`) are there and empty, but for `fit`'s, which it makes.
    What is said or logged is shown while it goes; metrics also go to MLflow.

    Attributes:
        check: raises ConfigurationError where a spec cannot be trained or served as it is.
        facts: what stages depend on beside spec and data, as short texts by stage and name; a stage
            whose facts changed is run again.
        preprocess: reads the raw material into a folder.
        features: makes the frozen data set of it, with its manifest, in another.
        fit: trains on a data set's folder into another; called again after a kill it resumes.
        folder: where candidates lie that can be served, each in a folder of its served name.
        serve: makes a candidate answer, at no weight; returns once every replica has it.
        compare: measures champion (None: the plain model, or where there is none what a guess would
            give) and candidate on the same held-out cases: by metric the values of both, case by
            case, or what was measured over all of them. May leave its answers in the folder.
        plain: whether something answers without any version.
    """

    check: Callable[[Installation, Spec], None]
    facts: Callable[[Installation, Spec], Facts]
    preprocess: Callable[[Installation, Spec, Path, Say], None]
    features: Callable[[Installation, Spec, Path, Path, Say], Manifest]
    fit: Callable[[Installation, Spec, Path, Path, LogMetrics], Fitted]
    folder: Callable[[Installation], Path]
    serve: Callable[[Installation, Spec, str, Path], None]
    compare: Callable[[Installation, Spec, Path, str | None, str, Path, Say], Measurements]
    plain: bool


@dataclass(frozen=True, slots=True)
class FormerKind:
    """A kind as the lifecycle still calls it; going away."""

    check: Callable[[Installation, Spec], None]
    build_dataset: Callable[[Installation, Spec, Path], Manifest]
    fit: Callable[[Installation, Spec, Path, Path, LogMetrics], Fitted]
    serve: Callable[[Installation, Spec, str, Path], None]
    answer: Callable[[Installation, Spec, str | None, Sequence[Case], Say], list[Answer]]
