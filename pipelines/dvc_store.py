"""Snapshots in DVC: `LLMOPS_HOME/data` is its workspace, and what is kept is in its remote.

Beside each folder lies a small file, `<id>.dvc`, that leads to its content; where the remote is a
folder it holds a copy of them. With another remote they are what is to be backed up, or committed.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.settings import Settings
from gateway.whole_file import write_whole
from pipelines.data_plan import DataPlan
from pipelines.dvc_process import Dvc, WorkspaceError, drop_stale_locks, stage_environment
from pipelines.dvc_remote import DvcRemote, remote_of
from pipelines.manifest import Manifest
from pipelines.snapshot_store import SnapshotMissing, summary

TOLD = "meta"  # DVC leaves this key of its files to us


@dataclass(frozen=True, slots=True)
class DvcStore:
    """A `SnapshotStore`. One process at a time works in it; the others wait."""

    settings: Settings
    plan: DataPlan

    @property
    def folder(self) -> Path:
        """DVC's workspace."""
        return self.settings.home / "data"

    @property
    def remote(self) -> DvcRemote:
        """Where it is kept."""
        return remote_of(self.settings, self.plan)

    def keep(self, folder: Path, manifest: Manifest, run: str | None = None) -> None:
        """Add the folder to DVC and push it. Raises WorkspaceError."""
        target = folder.relative_to(self.folder)
        pin = self._pin(manifest.name, manifest.dataset_id)
        if _read(pin).get(TOLD, {}).get("pushed") == self.remote.url:
            return
        with self._held() as dvc:
            dvc.run("add", str(target))
            dvc.run("push", f"{target}.dvc")
            told = summary(manifest) | {"run": run, "pushed": self.remote.url}
            text = yaml.safe_dump(_read(pin) | {TOLD: told}, sort_keys=False)
            if self._pins is not None:
                write_whole(self._pins / f"{target}.dvc", text)
            write_whole(pin, text)  # last: it says that all of it was done

    def accept(self, snapshot_id: str, run: str) -> None:
        """DVC has no branches: what is kept is kept, whatever the gate says."""

    def listed(self) -> list[Mapping[str, Any]]:
        """From the small files, here and in the remote."""
        found: dict[str, Mapping[str, Any]] = {}
        for root in (self._pins, self.folder):
            for pin in [] if root is None else sorted(root.glob("*/*.dvc")):
                found[pin.stem] = _read(pin).get(TOLD, {})
        return [told for told in found.values() if told]

    def fetch(self, source: str, snapshot_id: str, out: Path) -> None:
        """Pull from the cache or the remote. Raises SnapshotMissing, WorkspaceError."""
        pin = self._pin(source, snapshot_id)
        if out != pin.with_suffix(""):
            raise ValueError(f"{out}: DVC puts it into {pin.with_suffix('')}")
        kept = None if self._pins is None else self._pins / source / pin.name
        if not pin.exists():
            if kept is None or not kept.exists():
                raise SnapshotMissing(f"{pin}: there is no such file, which leads to the snapshot")
            write_whole(pin, kept.read_text())
        with self._held() as dvc:
            try:
                dvc.run("pull", "--force", str(pin.relative_to(self.folder)))
            except WorkspaceError as error:
                raise SnapshotMissing(
                    f"snapshot {snapshot_id} is neither in DVC's cache here nor in "
                    f"{self.remote.url}: put that back, or freeze its period again (llmops data "
                    f"snapshot {source} --since … --until …); {error}"
                ) from error

    @property
    def _pins(self) -> Path | None:
        """Copies of the small files, where the remote is a folder."""
        return self.remote.pins / "data" if self.remote.is_folder else None

    def _pin(self, source: str, snapshot_id: str) -> Path:
        return self.folder / source / f"{snapshot_id}.dvc"

    @contextmanager
    def _held(self) -> Iterator[Dvc]:
        dvc_dir = self.folder / ".dvc"
        dvc_dir.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            write_whole(dvc_dir / "config", self.remote.configuration(dvc_dir))
            drop_stale_locks(dvc_dir / "tmp" / "rwlock")
            yield Dvc(self.folder, stage_environment(self.settings), file.fileno())


def _read(pin: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(pin.read_text()) if pin.exists() else {}
    return content
