"""A pass of the train pipeline as a run in MLflow, with a run of its own under it for each step
that it took: parameters, metrics, and the versions of data, code and pipeline.

A training's own run is that of the step `train`. What cannot be told because MLflow is away is kept
in a file of the model's workspace and told with the next step, in the same run if one was begun.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import time
from typing import Any

import orjson
import uuid_utils

from gateway.settings import Settings
from gateway.whole_file import write_whole
from pipelines.code_version import git_sha, pipeline_version
from pipelines.installation import Installation
from pipelines.mlflow_api import (
    MLflowAPI,
    MLflowAway,
    MLflowRefused,
    experiment_id,
    pairs,
    quoted,
)
from pipelines.spec import Spec

PASS, PARENT = "LLMOPS_PASS", "LLMOPS_PASS_MLFLOW_RUN"
PARENT_TAG = "mlflow.parentRunId"
UNTOLD, STEP = "untold", "llmops.step_id"
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
LONGEST_PARAM = 6000  # characters; MLflow refuses longer ones
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Noted:
    """What a step has to say of itself.

    Attributes:
        tags: ids of what it worked on or made, such as `dataset_id`.
        run_id: the run in MLflow that it kept already, which its step is; None: one is made.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str | None] = field(default_factory=dict)
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was taken. `began` and `ended` are seconds of the clock."""

    name: str
    stage: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str | None]
    run_id: str | None
    began: float
    ended: float


def step_tags(settings: Settings, spec: Spec, stage: str) -> dict[str, str | None]:
    """What every step's run says: which pass it is of, and the versions of code and pipeline."""
    return {
        "stage": stage,
        "kind": spec.kind,
        "alias": spec.alias,
        "run_id": settings.secret_value(PASS),
        PARENT_TAG: settings.secret_value(PARENT),
        "git_sha": git_sha(),
        "pipeline_version": pipeline_version(spec.kind),
    }


def stage_settings(settings: Settings, run_id: str, parent: str | None) -> Settings:
    """The settings of the stages of a pass: which one it is, and its run in MLflow."""
    known = {PASS: run_id, PARENT: parent or ""}
    return replace(settings, environ={**settings.environ, **known})


def tell_step(
    installation: Installation, spec: Spec, stage: str, noted: Noted, began: float
) -> None:
    """Tell MLflow of a step, and of those before that it has not heard of.

    Raises: RuntimeError: MLflow does not take it. Of one before that is only logged.
    """
    tags = {**step_tags(installation.settings, spec, stage), **noted.tags}
    ended = time()
    metrics = {**noted.metrics, "seconds": round(ended - began, 3)}
    step = Step(spec.name, stage, noted.params, metrics, tags, noted.run_id, began, ended)
    folder = installation.lifecycle_dir / spec.name / UNTOLD
    taken = folder / f"{uuid_utils.uuid7()}.json"
    write_whole(taken, orjson.dumps(asdict(step)))
    api = MLflowAPI(installation.tracking_uri())
    for path in sorted(folder.glob("*.json")):
        try:
            _tell(api, path.stem, Step(**orjson.loads(path.read_bytes())))
        except MLflowAway:
            return  # told with the next step
        except MLflowRefused as error:
            kept = path.rename(path.with_suffix(".refused"))
            said = f"MLflow does not take a step, see {kept}: {error}"
            if path == taken:
                raise RuntimeError(said) from error
            _log.warning("%s", said)
        else:
            path.unlink()


@dataclass(slots=True)
class PassRun:
    """The run in MLflow of a pass under way; `run_id` is None where MLflow was away.

    Attributes:
        ids: what the pass made, for tags.
        seconds: of each stage.
        figures: of its verdict, so that passes can be compared.
    """

    run_id: str | None
    ids: dict[str, str | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


@contextmanager
def pass_run(installation: Installation, spec: Spec, run_id: str) -> Iterator[PassRun]:
    """The run in MLflow of the pass `run_id`, which ends with the block. Its row in `run` says all
    of it too, so a pass goes on without it."""
    api = MLflowAPI(installation.tracking_uri())
    under_way = PassRun(_begin(api, installation.settings, spec, run_id))
    status = KILLED
    try:
        yield under_way
        status = FINISHED
    except Exception:
        status = FAILED
        raise
    finally:
        _finish(api, under_way, status)


def size_of(folder: Path) -> dict[str, float]:
    """Files of a folder and their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _begin(api: MLflowAPI, settings: Settings, spec: Spec, run_id: str) -> str | None:
    tags = {**step_tags(settings, spec, "pass"), "run_id": run_id, PARENT_TAG: None}
    params = {"dataset": spec.dataset, "training": spec.training, "evaluation": spec.evaluation}
    try:
        made = _create(api, spec.name, f"pass-{run_id[-12:]}", tags, time())
    except (MLflowAway, MLflowRefused):
        return None
    with suppress(MLflowAway, MLflowRefused):  # it has been begun, so it is ended as well
        api.post("runs/log-batch", {"run_id": made, "params": pairs(_short(params))})
    return made


def _finish(api: MLflowAPI, under_way: PassRun, status: str) -> None:
    if under_way.run_id is None:
        return
    seconds = {f"seconds/{stage}": value for stage, value in under_way.seconds.items()}
    metrics = {**seconds, **under_way.figures}
    body = {"metrics": _metrics(metrics, time()), "tags": pairs(under_way.ids)}
    with suppress(MLflowAway, MLflowRefused):
        api.post("runs/log-batch", {"run_id": under_way.run_id, **body})
        _end(api, under_way.run_id, status, time())


def _tell(api: MLflowAPI, identifier: str, step: Step) -> None:
    own = step.run_id is not None
    run = step.run_id or _run(api, identifier, step)
    body = {
        "run_id": run,
        "params": [] if own else pairs(_short(step.params)),
        "metrics": _metrics(step.metrics, step.ended),
        "tags": pairs(step.tags),
    }
    api.post("runs/log-batch", body)
    if not own:
        _end(api, run, FINISHED, step.ended)


def _run(api: MLflowAPI, identifier: str, step: Step) -> str:
    """The run that was begun for a step when it was told before, or a new one."""
    body = {
        "experiment_ids": [experiment_id(api, step.name)],
        "filter": f"tags.`{STEP}` = {quoted(identifier)}",
        "max_results": 1,
    }
    found = api.post("runs/search", body).get("runs", [])
    if found:
        return str(found[0]["info"]["run_id"])
    tags = {**step.tags, STEP: identifier}
    return _create(api, step.name, f"{step.stage}-{step.name}", tags, step.began)


def _create(
    api: MLflowAPI, name: str, title: str, tags: Mapping[str, str | None], began: float
) -> str:
    body = {
        "experiment_id": experiment_id(api, name),
        "run_name": title,
        "start_time": int(began * 1000),
        "tags": pairs(tags),
    }
    return str(api.post("runs/create", body)["run"]["info"]["run_id"])


def _end(api: MLflowAPI, run: str, status: str, moment: float) -> None:
    api.post("runs/update", {"run_id": run, "status": status, "end_time": int(moment * 1000)})


def _short(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:LONGEST_PARAM] for name, value in params.items()}


def _metrics(values: Mapping[str, float], moment: float) -> list[dict[str, Any]]:
    stamp = int(moment * 1000)
    return [
        {"key": key, "value": value, "timestamp": stamp, "step": 0}
        for key, value in values.items()
        if math.isfinite(value)
    ]
