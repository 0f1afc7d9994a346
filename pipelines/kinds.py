"""The kinds of model that take the lifecycle. A kind is a few plain functions, not a class tree;
the lifecycle calls them and never asks which kind it has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evals.gate import Measurement
from pipelines.installation import Installation
from pipelines.manifest import Manifest
from pipelines.spec import Spec

Say = Callable[[int, str], None]
LogMetrics = Callable[[int, Mapping[str, float]], None]
Measurements = Mapping[str, Measurement]
Facts = Mapping[str, Mapping[str, str]]


class EvaluationFailed(RuntimeError):
    """Champion or candidate could not be measured; the message says who and why."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate that was trained.

    Attributes:
        served_name: what it is served by, made from its content and so never reused: the model's
            name, a hyphen, the digest's first digits.
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
class Contest:
    """Who is measured, by served names. `champion` None: the plain model or, where there is none,
    what a guess would give."""

    champion: str | None
    candidate: str


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
        digest: of what the model in such a folder has learnt, as its `Fitted` has it; raises
            OSError, ValueError or RuntimeError where the folder is not whole.
        serve: makes a candidate answer, at no weight; returns once every replica has it.
        compare: measures both of a contest on the same held-out cases: by metric the values of
            both, case by case, or what was measured over all of them. May leave its answers in the
            folder.
        accept: hears that the gate let a candidate through that was made of a data set.
        plain: whether something answers without any version.
    """

    check: Callable[[Installation, Spec], None]
    facts: Callable[[Installation, Spec], Facts]
    preprocess: Callable[[Installation, Spec, Path, Say], None]
    features: Callable[[Installation, Spec, Path, Path, Say], Manifest]
    fit: Callable[[Installation, Spec, Path, Path, LogMetrics], Fitted]
    folder: Callable[[Installation], Path]
    digest: Callable[[Path], str]
    serve: Callable[[Installation, Spec, str, Path], None]
    compare: Callable[[Installation, Spec, Path, Contest, Path, Say], Measurements]
    accept: Callable[[Installation, Manifest], None]
    plain: bool
