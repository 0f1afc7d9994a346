"""Where snapshots are kept: one interface, with DVC or lakeFS behind it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipelines.manifest import Manifest


class SnapshotMissing(RuntimeError):
    """There is no such snapshot, or its files cannot be had; the message says what there is."""


class SnapshotStore(Protocol):
    """Keeps folders of files under the ids of their content.

    The folder of a snapshot lies in `LLMOPS_HOME/data`, in one named for its source, under its id.
    """

    def keep(self, folder: Path, manifest: Manifest, run: str | None = None) -> None:
        """Keep a snapshot's files so that they can be fetched again; twice is once.

        `run`: the pass of a pipeline that made it, if one did.
        """

    def accept(self, snapshot_id: str, run: str) -> None:
        """The gate has let the candidate through that `run` made from the snapshot."""

    def listed(self) -> list[Mapping[str, Any]]:
        """What is known of each: `id`, `source`, `since`, `until`, `rows`, `created_at`."""

    def fetch(self, source: str, snapshot_id: str, out: Path) -> None:
        """Put the files into the folder `out`. Raises SnapshotMissing."""


def summary(manifest: Manifest) -> dict[str, Any]:
    """What `listed` tells of a snapshot."""
    told = {name: manifest.about.get(name) for name in ("since", "until", "created_at")}
    return {"id": manifest.dataset_id, "source": manifest.name, "rows": manifest.rows, **told}
