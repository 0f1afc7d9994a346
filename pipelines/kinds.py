"""The kinds of model that take the lifecycle. A kind is a few plain functions, not a class tree;
the lifecycle calls them and never asks which kind it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.records import Answer, Case
from pipelines.datasets import Manifest
from pipelines.installation import Installation
from pipelines.spec import Spec

Say = Callable[[int, str], None]
LogMetrics = Callable[[int, Mapping[str, float]], None]


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

    Attributes:
        check: raises ConfigurationError where a spec cannot be trained or served as it is.
        build_dataset: freezes a data set into a folder that is there and empty.
        fit: trains on a data set's folder into another; called again after a kill it resumes.
        serve: makes a candidate answer, at no weight; returns once every replica has it.
        answer: asks a candidate (or the plain base, None) each case.
    """

    check: Callable[[Installation, Spec], None]
    build_dataset: Callable[[Installation, Spec, Path], Manifest]
    fit: Callable[[Installation, Spec, Path, Path, LogMetrics], Fitted]
    serve: Callable[[Installation, Spec, str, Path], None]
    answer: Callable[[Installation, Spec, str | None, Sequence[Case], Say], list[Answer]]
