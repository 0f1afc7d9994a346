"""One pass of the train pipeline over a model's DVC workspace: up to the gate, and where that says
promote on to registration and live traffic. The row in `run` says how far it came and why it ended.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from evals.records import Decision, Verdict
from evals.verdicts import find_verdict
from pipelines.code_version import git_sha
from pipelines.installation import Installation
from pipelines.lifecycle import (
    FITTED,
    TRAINING_FILE,
    VERDICT_FILE,
    VERSION_FILE,
    facts_of,
    require_usable,
    work_folder,
)
from pipelines.manifest import MANIFEST
from pipelines.runs import FAILED, INTERRUPTED, MESSAGE_CHARACTERS, Run, latest, under_way
from pipelines.spec import Spec
from pipelines.stages import EXPERIMENT_FILE
from pipelines.step_runs import PassRun, pass_run, stage_settings
from pipelines.tables import RunRow
from pipelines.tracking import figures
from pipelines.workspace import FOLDERS, Workspace, WorkspaceError, workspace_of

STAGES = tuple(FOLDERS)
FREEZING = STAGES[: STAGES.index("train")]
AFTER_TRAINING = STAGES[STAGES.index("train") + 1 :]
UP_TO_GATE = STAGES[: STAGES.index("gate") + 1]
LAST_TWO = 2
PRODUCTS = {
    "features": (MANIFEST, "dataset_id"),
    "train": (TRAINING_FILE, "training_id"),
    "gate": (VERDICT_FILE, "verdict_id"),
    "register": (VERSION_FILE, "version"),
}
FROZEN = "as it was frozen for the run before, which did not come to its end (--fresh: anew)"

Progress = Callable[[str, int, str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass made.

    Attributes:
        served_name: what the candidate is served by.
        version: the registered one; None where the gate did not let it through.
        experiment_id, promotion_id, approval_id: what gives it live traffic, or what that waits
            for, if it was to have any.
        folder: the workspace, with the stages' outputs.
        seconds: of each stage that was run, by its name.
    """

    run_id: str
    dataset_id: str
    training_id: str
    served_name: str
    verdict: Verdict
    version: str | None
    folder: Path
    experiment_id: str | None = None
    promotion_id: str | None = None
    approval_id: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def run_pass(
    installation: Installation,
    spec: Spec,
    show: Progress,
    *,
    fresh: bool = False,
    experiment: bool = True,
) -> Outcome:
    """Run the pipeline until the gate; register what it lets through, and try it on live traffic.

    After a pass that was killed, or failed with its training done, it goes on from that one's
    frozen data set and its last checkpoint, unless `fresh`; but not a second time where it failed
    after the training at the same place again.

    Args:
        experiment: whether what was registered gets traffic; else somebody starts that by hand.

    Raises:
        ConfigurationError: the spec cannot be trained or served as it is.
        Conflict: another pass of this model is under way.
        StageFailed: a stage failed; the message is its own. The champion was not touched.
    """
    plain, database = spec.model_dump(mode="json"), installation.database
    with (
        under_way(database, installation.run_dir, spec.name, plain, git_sha()) as run,
        pass_run(installation, spec, run.run_id) as told,
    ):
        require_usable(installation, spec)
        settings = stage_settings(installation.settings, run.run_id, told.run_id)
        workspace = replace(workspace_of(installation, spec.name), settings=settings)
        made = _Pass(workspace, run, told, show)
        frozen = _prepare(installation, spec, workspace, fresh=fresh)
        for stage in UP_TO_GATE:
            if stage in FREEZING and frozen:
                show(stage, 100, FROZEN)
                made.note(stage)
            else:
                made.go(stage)
        verdict = _verdict(installation, workspace.folder)
        told.figures.update(figures(verdict))
        if verdict.decision is Decision.PROMOTE:
            for stage in ("register", *(["experiment"] if experiment else [])):
                made.go(stage)
        else:
            run.note(message=f"{verdict.decision}: {verdict.reasons[0]}")
        made.push()
    return _outcome(made, verdict, experiment=experiment)


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass under way."""

    workspace: Workspace
    run: Run
    told: PassRun
    show: Progress

    def go(self, stage: str) -> None:
        """Run a stage where something changed; its product is noted."""
        self.run.enter(stage)
        self.show(stage, 0, "")
        started = monotonic()

        def on_line(line: str) -> None:
            try:
                said = orjson.loads(line)
                self.show(stage, int(said["percent"]), str(said["what"]))
            except (orjson.JSONDecodeError, KeyError, TypeError):
                return  # DVC's own words, or an error that the failure will tell

        self.workspace.reproduce(stage, on_line)
        self.told.seconds[stage] = monotonic() - started
        self.show(stage, 100, "")
        self.note(stage)

    def push(self) -> None:
        """Copy everything to the remote. What cannot be now, is with the next pass."""
        try:
            self.workspace.push()
        except WorkspaceError as error:
            self.show("push", 100, f"not in the remote yet: {error}")
            self.run.note(message=f"not in the remote yet: {error}"[:MESSAGE_CHARACTERS])

    def note(self, stage: str) -> None:
        """Put the id of what a stage made into the row and into MLflow."""
        product = _product(self.workspace.folder, stage)
        self.told.ids.update(product)
        if product:
            self.run.note(**product)


def _prepare(installation: Installation, spec: Spec, workspace: Workspace, *, fresh: bool) -> bool:
    """Bring the workspace up to date; whether the data set of the run before is gone on with."""
    before, facts = workspace.facts, facts_of(installation, spec)
    workspace.prepare(spec.text(), facts)
    if fresh:
        shutil.rmtree(work_folder(installation, spec), ignore_errors=True)
        return False
    same = all(before.get(stage) == dict(facts.get(stage, {})) for stage in FREEZING)
    return same and _is_frozen(installation, spec, workspace.folder)


def _outcome(made: _Pass, verdict: Verdict, *, experiment: bool) -> Outcome:
    folder = made.workspace.folder
    training = _read(folder / FOLDERS["train"] / TRAINING_FILE)
    version, traffic = None, {}
    if verdict.decision is Decision.PROMOTE:
        version = _product(folder, "register")["version"]
        if experiment:
            traffic = _read(folder / FOLDERS["experiment"] / EXPERIMENT_FILE)
    return Outcome(
        run_id=made.run.run_id,
        dataset_id=training["dataset_id"],
        training_id=training["training_id"],
        served_name=training["served_name"],
        verdict=verdict,
        version=version,
        folder=folder,
        experiment_id=traffic.get("experiment_id"),
        promotion_id=traffic.get("promotion_id"),
        approval_id=traffic.get("approval_id"),
        seconds=made.told.seconds,
    )


def _is_frozen(installation: Installation, spec: Spec, folder: Path) -> bool:
    """Whether the data set in `folder` is of a pass that is to be gone on with."""
    begun = [row for row in latest(installation.database, spec.name) if row.stage in STAGES]
    if not begun or not (folder / FOLDERS["features"] / MANIFEST).exists():
        return False
    last, left = begun[0], any(work_folder(installation, spec).glob(f"{FITTED}*"))
    failed = last.state == FAILED
    later = failed and last.stage in AFTER_TRAINING and not _again(begun)
    goes_on = last.state == INTERRUPTED or later or (failed and left)
    same = last.dataset_id == _product(folder, "features")["dataset_id"]
    return goes_on and same and _source(last.spec) == _source(spec.model_dump(mode="json"))


def _again(begun: Sequence[RunRow]) -> bool:
    """Whether the last two failed with the same data at the same place: it may be to blame."""
    if len(begun) < LAST_TWO:
        return False
    last, before = begun[:LAST_TWO]
    return before.state == FAILED and (before.stage, before.dataset_id) == (
        last.stage, last.dataset_id,
    )  # fmt: skip


def _source(spec: Mapping[str, Any]) -> list[Any]:
    """What of a spec a data set depends on."""
    return [spec["kind"], spec["alias"], spec["dataset"]]


def _product(folder: Path, stage: str) -> dict[str, Any]:
    """The id of what a stage made, if its row in `run` has a place for it."""
    if stage not in PRODUCTS:
        return {}
    file, name = PRODUCTS[stage]
    return {name: _read(folder / FOLDERS[stage] / file)[name]}


def _verdict(installation: Installation, folder: Path) -> Verdict:
    verdict_id = _product(folder, "gate")["verdict_id"]
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
