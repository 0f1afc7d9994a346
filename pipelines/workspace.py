"""A DVC workspace for each model: runs the train pipeline, skips what did not change.

Under `LLMOPS_HOME/lifecycle/<name>/` lie dvc.yaml, spec.yaml, facts.yaml, the folder of each stage,
DVC's cache, and in `pins/` a small file for every data set that there was: with it that data set
can be fetched again, from the cache or from the configured remote.

Invariants: one run at a time; a run that was killed blocks nobody, and what its stages keep beside
their outputs (checkpoints) stays; no network is reached for.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.configuration import owned_section
from gateway.settings import Settings
from pipelines.data_plan import DataPlan
from pipelines.dvc_process import (
    Dvc,
    OnLine,
    StageFailed,
    WorkspaceError,
    drop_stale_locks,
    orphans,
    stage_environment,
)
from pipelines.dvc_remote import DvcRemote, remote_of
from pipelines.installation import Installation
from pipelines.manifest import MANIFEST, DatasetChanged, read_manifest, verify

PIPELINE = Path(__file__).with_name("dvc.yaml")
FOLDERS: Mapping[str, str] = {
    "preprocess": "preprocessed",
    "features": "dataset",
    "train": "training",
    "evaluate": "evaluation",
    "gate": "verdict",
    "register": "version",
    "experiment": "experiment",
}
LOCK, PINS, FACTS = "dvc.lock", "pins", "facts.yaml"
NO_FACTS: Mapping[str, Mapping[str, str]] = {}

__all__ = ["Outputs", "StageFailed", "Workspace", "WorkspaceBusy", "WorkspaceError"]


class WorkspaceBusy(WorkspaceError):
    """A run is under way in this workspace."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a run left: the folders of the stages that it went through, and which of them it ran.

    The others did not change, or came from the cache: they had been run on the same before.
    """

    folders: Mapping[str, Path]
    ran: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workspace:
    """The workspace of the model `name`."""

    settings: Settings
    name: str
    plan: DataPlan = field(default_factory=DataPlan)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.settings.home / "lifecycle" / self.name

    @property
    def remote(self) -> DvcRemote:
        """Where `push` keeps what is to outlive it; shared by all models."""
        return remote_of(self.settings, self.plan)

    @property
    def lock(self) -> str:
        """DVC's lock file: hashes of what the last runs read and made; empty if there was none."""
        path = self.folder / LOCK
        return path.read_text() if path.exists() else ""

    @property
    def facts(self) -> Mapping[str, Mapping[str, str]]:
        """What it was prepared with last; empty if it never was."""
        path = self.folder / FACTS
        found: Mapping[str, Mapping[str, str]] = yaml.safe_load(
            path.read_text() if path.exists() else "{}"
        )
        return found

    def prepare(self, spec: str, facts: Mapping[str, Mapping[str, str]] = NO_FACTS) -> None:
        """Make the workspace, or bring it up to date: the pipeline, spec.yaml and facts.yaml.

        `facts` are what stages depend on beside spec and data, by stage and name.

        Raises:
            WorkspaceBusy: a run is under way.
        """
        with self._held():
            _replace(self.folder / PIPELINE.name, PIPELINE.read_text())
            _replace(self.folder / "spec.yaml", spec)
            whole = {stage: dict(facts.get(stage, {})) for stage in FOLDERS}
            _replace(self.folder / FACTS, yaml.safe_dump(whole))

    def reproduce(
        self, stage: str | None, on_line: OnLine | None = None, *, force: bool = False
    ) -> Outputs:
        """Run one stage, or all of them in order (None), where something changed.

        A stage takes the outputs before it as they are: `preprocess`, which always runs, reads what
        is live, so a pass that goes stage by stage rests on one data set.

        Args:
            on_line: gets each line of the stage and of DVC.
            force: run it even if nothing changed.

        Raises:
            WorkspaceBusy: a run is under way.
            StageFailed: a stage failed; the message has its own last words.
            WorkspaceError: DVC failed.
        """
        stages = tuple(FOLDERS) if stage is None else (stage,)
        if not set(stages) <= FOLDERS.keys():
            raise ValueError(f"no stage {stage!r} (there are: {', '.join(FOLDERS)})")
        options = [*(["--single-item"] if stage else []), *(["--force"] if force else [])]
        with self._held() as dvc:
            try:
                ran = dvc.run("repro", *options, stages[-1], on_line=on_line)
            finally:
                self._pin()
        return Outputs({one: self.folder / FOLDERS[one] for one in stages}, tuple(ran))

    def push(self) -> None:
        """Copy what the last runs made, and the pins, to the remote. Raises WorkspaceError."""
        kept = self.remote.pins / self.name
        with self._held() as dvc:
            pins = [pin for pin in self._pins() if not (kept / pin.name).exists()]
            targets = [*_stages_in(self.lock), *(f"{PINS}/{pin.name}" for pin in pins)]
            if targets:
                dvc.run("push", "--quiet", *targets)
            for pin in pins:
                _replace(kept / pin.name, pin.read_text())

    def checkout(self, dataset_id: str) -> Path:
        """Fetch a former data set into a folder of its own, and check its files; returns it.

        Raises:
            WorkspaceBusy: a run is under way.
            WorkspaceError: there never was one, or neither cache nor remote has its files.
        """
        pin, kept = self._pin_of(dataset_id), self.remote.pins / self.name / f"{dataset_id}.dvc"
        if not pin.exists() and not kept.exists():
            raise WorkspaceError(f"{pin}: there is no data set {dataset_id!r} of {self.name} here")
        with self._held() as dvc:
            if not pin.exists():
                _replace(pin, kept.read_text())
            try:
                dvc.run("pull", "--quiet", "--force", f"{PINS}/{pin.name}")
            except WorkspaceError as error:
                raise WorkspaceError(
                    f"data set {dataset_id} of {self.name} is neither in DVC's cache here nor in "
                    f"{self.remote.url}: put that back, or train again; {error}"
                ) from error
        fetched = pin.with_suffix("")
        try:
            verify(fetched, read_manifest(fetched))
        except DatasetChanged as error:
            raise WorkspaceError(str(error)) from error
        return fetched

    def _pins(self) -> list[Path]:
        return sorted((self.folder / PINS).glob("*.dvc"))

    def _pin_of(self, dataset_id: str) -> Path:
        return self.folder / PINS / f"{dataset_id}.dvc"

    def _pin(self) -> None:
        """Keep what leads to the data set that was just made; the first of an id stays."""
        made = _stages_in(self.lock).get("features")
        folder = self.folder / FOLDERS["features"]
        if made is None or not (folder / MANIFEST).exists():
            return  # the stage failed, and says so itself
        pin = self._pin_of(read_manifest(folder).dataset_id)
        if not pin.exists():
            _replace(pin, yaml.safe_dump({"outs": [made["outs"][0] | {"path": pin.stem}]}))

    @contextmanager
    def _held(self) -> Iterator[Dvc]:
        """The workspace to ourselves, with what a killed run left put right."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise self._busy() from error
            if orphans(self.folder.resolve()):
                raise self._busy()
            self._configure()
            drop_stale_locks(self.folder / ".dvc" / "tmp" / "rwlock")
            with self._whole_lock():
                yield Dvc(self.folder, stage_environment(self.settings), file.fileno())

    @contextmanager
    def _whole_lock(self) -> Iterator[None]:
        """Keep a copy of DVC's lock file, which it writes bit by bit; put it back after a kill.

        What is lost by that is in DVC's cache of runs, and is found there.
        """
        mark, lock = self.folder / ".dvc" / "under-way", self.folder / LOCK
        if mark.exists():
            lock.unlink(missing_ok=True)
            if self._kept_lock.exists():
                _replace(lock, self._kept_lock.read_text())
        mark.touch()
        try:
            yield
        except WorkspaceError:
            self._keep_lock()
            mark.unlink()
            raise
        self._keep_lock()
        mark.unlink()

    @property
    def _kept_lock(self) -> Path:
        return self.folder / ".dvc" / "lock.kept"

    def _keep_lock(self) -> None:
        if self.lock:
            _replace(self._kept_lock, self.lock)

    def _busy(self) -> WorkspaceBusy:
        """Names the stage's process: of a run that was killed it may be all that is left."""
        left = ", ".join(map(str, orphans(self.folder.resolve())))
        who = f" (process {left})" if left else ""
        return WorkspaceBusy(
            f"{self.folder}: a run of {self.name} is under way{who}; wait for its end, or stop it"
        )

    def _configure(self) -> None:
        config = self.folder / ".dvc" / "config"
        _replace(config, self.remote.configuration(config.parent))


def workspace_of(installation: Installation, name: str) -> Workspace:
    """The workspace of a model, with the remote that is configured. Raises ConfigurationError."""
    plan = owned_section(installation.configuration, "data", DataPlan)
    return Workspace(installation.settings, name, plan)


def _stages_in(lock: str) -> dict[str, Any]:
    """Stages of a lock file by name."""
    stages: dict[str, Any] = (yaml.safe_load(lock) or {}).get("stages", {})
    return stages


def _replace(path: Path, text: str) -> None:
    """Write a file whole, under its name at once; untouched if it says that already."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)
