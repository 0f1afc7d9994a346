"""One pass of the train pipeline over a model's DVC workspace: `dataset → train → evaluate`, and
`register` where the gate says promote. The row in `run` says how far it came and why it ended."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from evals.records import Decision, Verdict
from evals.verdicts import find_verdict
from pipelines.installation import Installation
from pipelines.lifecycle import (
    BASE,
    FITTED,
    TRAINING_FILE,
    VERDICT_FILE,
    VERSION_FILE,
    champion_adapter,
    git_sha,
    work_folder,
)
from pipelines.manifest import MANIFEST
from pipelines.runs import FAILED, INTERRUPTED, Run, latest, under_way
from pipelines.spec import Spec
from pipelines.workspace import Workspace, WorkspaceError

STAGES = ("dataset", "train", "evaluate", "register")
AFTER_TRAINING = STAGES[2:]
PRODUCTS = {
    "dataset": (Path("dataset", MANIFEST), "dataset_id"),
    "train": (Path("training", TRAINING_FILE), "training_id"),
    "evaluate": (Path("evaluation", VERDICT_FILE), "verdict_id"),
    "register": (Path("version", VERSION_FILE), "version"),
}
FROZEN = "as it was frozen for the run before, which did not come to its end (--fresh: anew)"

Progress = Callable[[str, int, str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass made.

    Attributes:
        version: the registered one; None where the gate did not let it through.
        folder: the workspace, with the stages' outputs.
        seconds: of each stage that was run, by its name.
    """

    run_id: str
    dataset_id: str
    training_id: str
    adapter: str
    verdict: Verdict
    version: str | None
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)


def run_pass(
    installation: Installation, spec: Spec, show: Progress, *, fresh: bool = False
) -> Outcome:
    """Run the pipeline until the gate, and register what it lets through.

    After a pass that was killed, or failed with its training done, it goes on from that one's
    frozen data set and its last checkpoint, unless `fresh`.

    Raises:
        Conflict: another pass of this model is under way.
        StageFailed: a stage failed; the message is its own. The champion was not touched.
    """
    plain = spec.model_dump(mode="json")
    with under_way(installation.database, installation.run_dir, spec.name, plain, git_sha()) as run:
        workspace = Workspace(installation.settings, spec.name)
        workspace.prepare(spec.text(), _facts(installation, spec))
        if fresh:
            shutil.rmtree(work_folder(installation, spec), ignore_errors=True)
        frozen = not fresh and _is_frozen(installation, spec, workspace.folder)
        seconds: dict[str, float] = {}
        for stage in STAGES[:3]:
            if stage == "dataset" and frozen:
                show(stage, 100, FROZEN)
            else:
                _stage(workspace, run, stage, show, seconds)
            run.note(**_product(workspace.folder, stage))
        verdict = _verdict(installation, workspace.folder)
        version = None
        if verdict.decision is Decision.PROMOTE:
            _stage(workspace, run, "register", show, seconds)
            version = _product(workspace.folder, "register")["version"]
            run.note(version=version)
        else:
            run.note(message=f"{verdict.decision}: {verdict.reasons[0]}")
        workspace.push()
    training = _read(workspace.folder / PRODUCTS["train"][0])
    return Outcome(
        run_id=run.run_id,
        dataset_id=training["dataset_id"],
        training_id=training["training_id"],
        adapter=training["adapter"],
        verdict=verdict,
        version=version,
        folder=workspace.folder,
        seconds=seconds,
    )


def _stage(
    workspace: Workspace, run: Run, stage: str, show: Progress, seconds: dict[str, float]
) -> None:
    run.enter(stage)
    show(stage, 0, "")
    started = monotonic()

    def on_line(line: str) -> None:
        try:
            said = orjson.loads(line)
            show(stage, int(said["percent"]), str(said["what"]))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return  # DVC's own words, or an error that the failure will tell

    workspace.reproduce(stage, on_line)
    seconds[stage] = monotonic() - started
    show(stage, 100, "")


def _facts(installation: Installation, spec: Spec) -> dict[str, str]:
    """What the stages depend on beside spec and data."""
    from rlhf.adapter import base_digest

    return {
        "base": base_digest(installation.model_folder(spec.base_model)),
        "cases": hashlib.sha256(spec.cases_path.read_bytes()).hexdigest(),
        "champion": champion_adapter(installation, spec.alias) or BASE,
    }


def _is_frozen(installation: Installation, spec: Spec, folder: Path) -> bool:
    """Whether the data set in `folder` is of a pass that is to be gone on with."""
    begun = [row for row in latest(installation.database, spec.name) if row.stage in STAGES]
    if not begun or not (folder / PRODUCTS["dataset"][0]).exists():
        return False
    last, left = begun[0], any(work_folder(installation, spec).glob(f"{FITTED}*"))
    goes_on = last.state == INTERRUPTED or (
        last.state == FAILED and (last.stage in AFTER_TRAINING or left)
    )
    same = last.dataset_id == _product(folder, "dataset")["dataset_id"]
    return goes_on and same and _source(last.spec) == _source(spec.model_dump(mode="json"))


def _source(spec: Mapping[str, Any]) -> list[Any]:
    """What of a spec a data set depends on."""
    return [spec["alias"], spec["dataset"], spec["evaluation"]["cases"]]


def _product(folder: Path, stage: str) -> dict[str, Any]:
    """The id of what a stage made, as the run's row takes it."""
    file, name = PRODUCTS[stage]
    return {name: _read(folder / file)[name]}


def _verdict(installation: Installation, folder: Path) -> Verdict:
    verdict_id = _read(folder / PRODUCTS["evaluate"][0])["verdict_id"]
    with installation.database.session() as session:
        verdict = find_verdict(session, verdict_id)
    if verdict is None:
        raise WorkspaceError(
            f"verdict {verdict_id} of {folder} is not in the state database; if that is a new one, "
            "remove the folder and run it again"
        )
    return verdict


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content
