"""One pass of the train pipeline over a model's DVC workspace: `dataset → train → evaluate`, and
`register` where the gate says promote. The row in `run` says how far it came and why it ended."""

import hashlib
import shutil
from collections.abc import Callable
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
    TRAINING_FILE,
    VERDICT_FILE,
    VERSION_FILE,
    champion_adapter,
    git_sha,
)
from pipelines.runs import Run, under_way
from pipelines.spec import Spec
from pipelines.workspace import Workspace

STAGES = ("dataset", "train", "evaluate", "register")

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

    A pass that was killed goes on from its frozen data set and its last checkpoint, unless `fresh`.

    Raises:
        Conflict: another pass of this model is under way.
        StageFailed: a stage failed; the message is its own. The champion was not touched.
    """
    plain = spec.model_dump(mode="json")
    with under_way(installation.database, installation.run_dir, spec.name, plain, git_sha()) as run:
        workspace = Workspace(installation.settings, spec.name)
        workspace.prepare(spec.text(), _facts(installation, spec))
        if fresh:
            shutil.rmtree(installation.lifecycle_dir / spec.name / "work", ignore_errors=True)
        seconds: dict[str, float] = {}
        for stage in STAGES[:3]:
            if stage == "dataset" and not fresh and _is_frozen(run, workspace.folder):
                show(stage, 100, "as it was frozen for the run that was interrupted")
            else:
                _stage(workspace, run, stage, show, seconds)
            run.note(**_products(workspace.folder))
        verdict = _verdict(installation, workspace.folder)
        version = None
        if verdict.decision is Decision.PROMOTE:
            _stage(workspace, run, "register", show, seconds)
            version = str(_read(workspace.folder / "version" / VERSION_FILE)["version"])
            run.note(version=version)
        else:
            run.note(message=f"{verdict.decision}: {verdict.reasons[0]}")
        workspace.push()
    training = _read(workspace.folder / "training" / TRAINING_FILE)
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


def _is_frozen(run: Run, folder: Path) -> bool:
    """Whether the run goes on with the training of one that was killed in it."""
    before = run.resumed
    return (
        before is not None
        and before.stage == "train"
        and before.dataset_id is not None
        and _products(folder).get("dataset_id") == before.dataset_id
    )


def _products(folder: Path) -> dict[str, Any]:
    """Ids of what the stages made so far, as the run's row takes them."""
    products: dict[str, Any] = {}
    manifest = folder / "dataset" / "manifest.json"
    if manifest.exists():
        products["dataset_id"] = _read(manifest)["dataset_id"]
    training = folder / "training" / TRAINING_FILE
    if training.exists() and _read(training)["dataset_id"] == products.get("dataset_id"):
        products["training_id"] = _read(training)["training_id"]
    verdict = folder / "evaluation" / VERDICT_FILE
    if verdict.exists() and "training_id" in products:
        found = _read(verdict)
        if found["evidence"].get("training_id") == products["training_id"]:
            products["verdict_id"] = found["verdict_id"]
    return products


def _verdict(installation: Installation, folder: Path) -> Verdict:
    verdict_id = _read(folder / "evaluation" / VERDICT_FILE)["verdict_id"]
    with installation.database.session() as session:
        verdict = find_verdict(session, verdict_id)
    if verdict is None:
        raise LookupError(f"verdict {verdict_id} of {folder} is not in the state database")
    return verdict


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content
