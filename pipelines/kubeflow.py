"""The train pipelines for Kubeflow Pipelines: the same stages, one import and one call each.

The compiled form (IR) of each kind's is in `compiled/`, under version control: what is submitted
to a cluster is what was reviewed. `python -m pipelines.kubeflow` writes them anew. Which stage
needs to run again is DVC's business on one machine; a cluster may take those in `CACHED` from its
cache.

The parameter `spec` is the text of a spec file, `live` whether what was registered is tried on live
traffic.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, components, dsl, local
from kfp.dsl.base_component import BaseComponent
from kfp.local.config import LocalExecutionConfig

from pipelines.code_version import compiled

IMAGE = "llmops:0.1.0"  # the project's own, with the extra `lifecycle`; never a tag that moves
RETRIES = 3
PLACEHOLDER = "{{$"
CACHED = ("features", "train")  # the others read or write what changes by itself


class PipelineFailed(RuntimeError):
    """A stage of a local run failed; its own words are in the output."""


class Resources(NamedTuple):
    """What a stage asks for and may use: processors, and memory as Kubernetes writes it."""

    cpu: str
    memory: str


SMALL = Resources("1", "2G")
PIPELINES: Mapping[str, tuple[str, Mapping[str, Resources]]] = {
    "llm": ("Feedback to a LoRA adapter on live traffic", {"train": Resources("2", "6G")}),
    "tabular": (
        "Events to a classifier on live traffic",
        {
            "preprocess": Resources("1", "4G"),
            "features": Resources("2", "4G"),
            "train": Resources("2", "4G"),
            "evaluate": Resources("1", "4G"),
        },
    ),
}  # a stage that is not named is SMALL


class Outputs(NamedTuple):
    """The stages' folders, as artifacts."""

    dataset: dsl.Dataset
    training: dsl.Model
    evaluation: dsl.Artifact
    verdict: dsl.Artifact
    version: dsl.Artifact


def preprocess(spec: str, out: dsl.Output[dsl.Dataset]) -> None:
    """Read the raw material as it is now."""
    from pipelines.component import run_stage

    run_stage("preprocess", spec, out.path)


def features(spec: str, preprocessed: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]) -> None:
    """Make a frozen data set of it."""
    from pipelines.component import run_stage

    run_stage("features", spec, out.path, preprocessed=preprocessed.path)


def train(spec: str, dataset: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Model]) -> None:
    """Train a candidate."""
    from pipelines.component import run_stage

    run_stage("train", spec, out.path, dataset=dataset.path)


def evaluate(
    spec: str,
    dataset: dsl.Input[dsl.Dataset],
    training: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Artifact],
) -> None:
    """Measure it and the champion on the held-out cases."""
    from pipelines.component import run_stage

    run_stage("evaluate", spec, out.path, dataset=dataset.path, training=training.path)


def gate(spec: str, evaluation: dsl.Input[dsl.Artifact], out: dsl.Output[dsl.Artifact]) -> None:
    """Judge the results."""
    from pipelines.component import run_stage

    run_stage("gate", spec, out.path, evaluation=evaluation.path)


def register(
    spec: str,
    training: dsl.Input[dsl.Model],
    verdict: dsl.Input[dsl.Artifact],
    out: dsl.Output[dsl.Artifact],
) -> None:
    """Register it, if its verdict says so."""
    from pipelines.component import run_stage

    run_stage("register", spec, out.path, training=training.path, verdict=verdict.path)


def experiment(
    spec: str, live: bool, version: dsl.Input[dsl.Artifact], out: dsl.Output[dsl.Artifact]
) -> None:
    """Try it on live traffic."""
    from pipelines.component import run_stage

    run_stage("experiment", spec, out.path, {"live": live}, version=version.path)


def pipeline_of(kind: str) -> BaseComponent:
    """The pipeline of a kind of model: the same stages, with its resources."""
    description, resources = PIPELINES[kind]

    def component(function: Callable[..., None], **inputs: Any) -> dsl.PipelineTask:
        made = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
        name = function.__name__
        return _limited(made(**inputs), resources.get(name, SMALL), cached=name in CACHED)

    def pipeline(spec: str, live: bool = True) -> Outputs:
        read = component(preprocess, spec=spec).outputs["out"]
        frozen = component(features, spec=spec, preprocessed=read).outputs["out"]
        trained = component(train, spec=spec, dataset=frozen).outputs["out"]
        measured = component(evaluate, spec=spec, dataset=frozen, training=trained).outputs["out"]
        judged = component(gate, spec=spec, evaluation=measured).outputs["out"]
        registered = component(register, spec=spec, training=trained, verdict=judged)
        version = registered.outputs["out"]
        component(experiment, spec=spec, live=live, version=version)
        return Outputs(frozen, trained, measured, judged, version)

    return dsl.pipeline(pipeline, name=f"train-{kind}", description=description)


def _limited(task: dsl.PipelineTask, resources: Resources, *, cached: bool) -> dsl.PipelineTask:
    """Resources, retries and caching; a stage that is done twice changes nothing, so all are
    retried."""
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    task.set_retry(RETRIES, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    task.set_caching_options(cached)
    return task


def compile_to(path: Path, kind: str) -> None:
    """Write the IR; the same code gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".new-{path.name}")  # the compiler goes by the suffix
    compiler.Compiler().compile(pipeline_of(kind), str(fresh))
    fresh.replace(path)


def run_locally(kind: str, spec: str, root: Path, *, live: bool = True) -> dict[str, Path]:
    """Run the committed IR on this machine, each task as a process; returns the stages' folders.

    Every run has a folder of its own under `root`. The processes see this one's environment. KFP
    takes no heed of retries and caching here: to resume and to skip, use `pipelines.workspace`.

    Raises:
        PipelineFailed: a stage failed.
        ValueError: Kubeflow would change the spec's text.
    """
    if PLACEHOLDER in spec:
        raise ValueError(
            f"spec: holds {PLACEHOLDER!r}, which Kubeflow fills in; write it otherwise"
        )
    pipeline = components.load_component_from_file(str(compiled(kind)))
    before = LocalExecutionConfig.instance
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*non-Python base image", category=RuntimeWarning
        )
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(root),
            workspace_root=str(root / "workspace"),  # else a folder is left in /tmp
        )
        try:
            outputs = pipeline(spec=spec, live=live).outputs
        except RuntimeError as error:
            raise PipelineFailed(str(error)) from error
        finally:
            LocalExecutionConfig.instance = before
    return {name: Path(artifact.path) for name, artifact in outputs.items()}


if __name__ == "__main__":
    for one in PIPELINES:
        compile_to(compiled(one), one)
