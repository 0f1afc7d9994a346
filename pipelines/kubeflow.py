"""The train pipeline for Kubeflow Pipelines: the same four stages, one import and one call each.

The compiled form (IR) is in `compiled/train_llm.yaml`, under version control: what is submitted to
a cluster is what was reviewed. `python -m pipelines.kubeflow` writes it anew. Which stage needs to
run again is DVC's business on one machine; a cluster may take `train` alone from its cache, for the
other stages read or write what changes by itself.
"""

import hashlib
import subprocess
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from kfp import compiler, components, dsl, local
from kfp.local.config import LocalExecutionConfig

COMPILED = Path(__file__).parent / "compiled" / "train_llm.yaml"
IMAGE = "llmops:0.1.0"  # the project's own, with the extra `lifecycle`; never a tag that moves
NAME, DESCRIPTION = "train-llm", "Feedback to a registered LoRA adapter"
RETRIES = 3
PLACEHOLDER = "{{$"
GIT_CHARACTERS, DIGEST_CHARACTERS = 12, 12


class PipelineFailed(RuntimeError):
    """A stage of a local run failed; its own words are in the output."""


class Outputs(NamedTuple):
    """The stages' folders, as artifacts."""

    dataset: dsl.Dataset
    training: dsl.Model
    evaluation: dsl.Artifact
    version: dsl.Artifact


def dataset(spec: str, out: dsl.Output[dsl.Dataset]) -> None:
    """Freeze a data set out of feedback and the request log."""
    from pipelines.component import run_stage

    run_stage("dataset", spec, out.path)


def train(spec: str, dataset: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Model]) -> None:
    """Train a candidate."""
    from pipelines.component import run_stage

    run_stage("train", spec, out.path, dataset=dataset.path)


def evaluate(spec: str, training: dsl.Input[dsl.Model], out: dsl.Output[dsl.Artifact]) -> None:
    """Compare it with the champion on the held-out cases."""
    from pipelines.component import run_stage

    run_stage("evaluate", spec, out.path, training=training.path)


def register(
    spec: str,
    training: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    out: dsl.Output[dsl.Artifact],
) -> None:
    """Register it, if its verdict says so."""
    from pipelines.component import run_stage

    run_stage("register", spec, out.path, training=training.path, evaluation=evaluation.path)


def train_llm(spec: str) -> Outputs:
    """The pipeline; `spec` is the text of a spec file (see `pipelines.spec`)."""
    frozen = _component(dataset)(spec=spec)
    trained = _component(train)(spec=spec, dataset=frozen.outputs["out"])
    training = trained.outputs["out"]
    judged = _component(evaluate)(spec=spec, training=training)
    evaluation = judged.outputs["out"]
    registered = _component(register)(spec=spec, training=training, evaluation=evaluation)
    _limit(frozen, cpu="1", memory="2G")
    _limit(trained, cpu="2", memory="6G")
    _limit(judged, cpu="1", memory="2G")
    _limit(registered, cpu="1", memory="2G")
    trained.set_caching_options(True)
    return Outputs(
        dataset=frozen.outputs["out"],
        training=training,
        evaluation=evaluation,
        version=registered.outputs["out"],
    )


def _component(function: Callable[..., None]) -> Callable[..., dsl.PipelineTask]:
    made: Callable[..., dsl.PipelineTask] = dsl.component(
        function, base_image=IMAGE, install_kfp_package=False
    )
    return made


def _limit(task: dsl.PipelineTask, *, cpu: str, memory: str) -> None:
    """Resources and retries; a stage that is done twice changes nothing, so all are retried."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu)
    task.set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(RETRIES, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    task.set_caching_options(False)


def compile_to(path: Path) -> None:
    """Write the IR; the same code gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pipeline = dsl.pipeline(train_llm, name=NAME, description=DESCRIPTION)
    fresh = path.with_name(f".new-{path.name}")  # the compiler goes by the suffix
    compiler.Compiler().compile(pipeline, str(fresh))
    fresh.replace(path)


def pipeline_version() -> str:
    """Which pipeline this is: the commit (outside of Git: the release), and the IR's digest."""
    digest = hashlib.sha256(COMPILED.read_bytes()).hexdigest()[:DIGEST_CHARACTERS]
    return f"{_commit() or version('llmops')}+{digest}"


def run_locally(spec: str, root: Path) -> dict[str, Path]:
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
    pipeline = components.load_component_from_file(str(COMPILED))
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
            outputs = pipeline(spec=spec).outputs
        except RuntimeError as error:
            raise PipelineFailed(str(error)) from error
        finally:
            LocalExecutionConfig.instance = before
    return {name: Path(artifact.path) for name, artifact in outputs.items()}


def _commit() -> str | None:
    command = ["git", "-C", str(COMPILED.parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip()[:GIT_CHARACTERS] or None


if __name__ == "__main__":
    compile_to(COMPILED)
