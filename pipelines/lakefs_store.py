"""Snapshots in a lakeFS repository: a branch for each run, merged only once a gate has passed.

A snapshot's files lie at `<source>/<id>/`; they are committed on the branch `run-<run>`, and the
tag `snapshot-<id>` names the commit, whatever becomes of the branch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.configuration import ConfigurationError
from gateway.settings import Settings
from pipelines.data_plan import LakeFS
from pipelines.manifest import MANIFEST, Manifest
from pipelines.snapshot_store import SnapshotMissing, summary

if TYPE_CHECKING:
    from lakefs import Repository

TAG, BRANCH = "snapshot-", "run-"


class LakeFSFailed(RuntimeError):
    """lakeFS is away, or refused; the message has its own words."""


def open_lakefs(settings: Settings, given: LakeFS) -> "LakeFSStore":
    """The repository that is configured. Raises ConfigurationError if a key is not set."""
    from lakefs import Client, Repository

    keys = [settings.secret_value(name) for name in (given.key_env, given.secret_env)]
    if None in keys:
        missing = given.key_env if keys[0] is None else given.secret_env
        raise ConfigurationError(f"data.lakefs: {missing} is not in the environment")
    client = Client(host=given.url, username=keys[0], password=keys[1])
    return LakeFSStore(Repository(given.repository, client), given.branch)


@dataclass(frozen=True, slots=True)
class LakeFSStore:
    """A `SnapshotStore`. `branch` is what accepted runs are merged into."""

    repository: "Repository"
    branch: str

    def keep(self, folder: Path, manifest: Manifest, run: str | None = None) -> None:
        """Commit the files on the run's branch, and tag the commit. Raises LakeFSFailed.

        Without a run the branch is one of the snapshot's own, which nothing merges.
        """
        with _said(f"snapshot {manifest.dataset_id}: could not be kept"):
            branch = self.repository.branch(BRANCH + (run or manifest.dataset_id))
            if self._metadata(manifest.dataset_id) is not None:  # another run's, or this one's
                branch.create(TAG + manifest.dataset_id, exist_ok=True)
                return
            branch.create(self.branch, exist_ok=True)
            for file in (*manifest.files, MANIFEST):
                place = branch.object(f"{manifest.name}/{manifest.dataset_id}/{file}")
                place.upload((folder / file).read_bytes(), mode="wb", pre_sign=False)
            told = {key: str(value) for key, value in summary(manifest).items()}
            message = f"Snapshot {manifest.dataset_id} of {manifest.name}"
            commit = branch.commit(message, told, allow_empty=True)  # its files may lie there
            # Another machine that freezes the same may have been faster with the tag.
            self.repository.tag(TAG + manifest.dataset_id).create(commit, exist_ok=True)

    def accept(self, snapshot_id: str, run: str) -> None:
        """Merge the run's branch, if that was not done before. Raises LakeFSFailed.

        A run that found the snapshot frozen already has its branch made here.
        """
        with _said(f"snapshot {snapshot_id}: {BRANCH}{run} could not be merged"):
            branch = self.repository.branch(BRANCH + run)
            branch.create(TAG + snapshot_id, exist_ok=True)
            if any(self.repository.ref(self.branch).diff(branch, max_amount=1)):
                branch.merge_into(self.branch, message=f"The gate passed run {run}")

    def listed(self) -> list[Mapping[str, Any]]:
        """From the commits that the tags name. Raises LakeFSFailed."""
        with _said("the snapshots could not be listed"):
            tags = [tag.id.removeprefix(TAG) for tag in self.repository.tags(prefix=TAG)]
            found = [self._metadata(one) for one in tags]
        return [{**told, "rows": int(told["rows"])} for told in found if told is not None]

    def fetch(self, source: str, snapshot_id: str, out: Path) -> None:
        """Download the files. Raises SnapshotMissing, LakeFSFailed."""
        prefix = f"{source}/{snapshot_id}/"
        with _said(f"snapshot {snapshot_id}: could not be fetched"):
            if self._metadata(snapshot_id) is None:
                raise SnapshotMissing(f"{self.repository.id}: no tag {TAG}{snapshot_id}")
            commit = self.repository.ref(TAG + snapshot_id)
            paths = [one.path for one in commit.objects(prefix=prefix)]
            out.mkdir(parents=True, exist_ok=True)
            for path in sorted(paths, key=lambda path: path.endswith(MANIFEST)):
                with commit.object(path).reader("rb", pre_sign=False) as reader:
                    (out / path.removeprefix(prefix)).write_bytes(reader.read())

    def _metadata(self, snapshot_id: str) -> Mapping[str, str] | None:
        from lakefs.exceptions import NotFoundException

        try:
            commit = self.repository.ref(TAG + snapshot_id).get_commit()
        except NotFoundException:
            return None
        found: Mapping[str, str] | None = commit.metadata
        return found


@contextmanager
def _said(what: str) -> Iterator[None]:
    """lakeFS' and its transport's errors as LakeFSFailed."""
    from lakefs.exceptions import LakeFSException
    from lakefs_sdk.exceptions import OpenApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (LakeFSException, OpenApiException, HTTPError) as error:
        raise LakeFSFailed(f"{what}: {error}") from error
