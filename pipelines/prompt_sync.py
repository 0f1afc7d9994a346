"""From Git to MLflow and the state database: one version for each content of a prompt.

All files are checked before anything is written. Then MLflow gets the versions that it lacks, and
at last the state database, in one transaction: the gateway sees all of a sync or nothing of it, and
one that was broken off is done again and finds what is there.

`production` of a prompt is set here only where it never was: by the first sync of an installation,
or where it is asked for. Nothing is replaced by that, so no gate could compare it with anything.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.gate import Condition
from evals.metrics import metric_named
from gateway import wire
from gateway.configuration import Limits
from gateway.database import Conflict, Database, now
from gateway.prompt_versions import (
    PRODUCTION,
    PromptVersionRow,
    find_version,
    label_of,
    put_version,
    versions_of,
)
from pipelines.champion import hold
from pipelines.prompt_labels import FIRST, LabelMove, move_label
from pipelines.prompt_registry import PromptRegistry, require_storable
from prompts.library import BadPromptFile, load_library
from prompts.prompt import Mistake, Prompt

GIT_SECONDS = 10
DIRTY = "-dirty"


@dataclass(frozen=True, slots=True)
class Source:
    """A prompt as its file has it.

    Attributes:
        path: of the file, from the root of the repository.
        git_sha: the commit that the working tree is at, with `-dirty` where the file was changed
            since; None outside of Git.
    """

    prompt: Prompt
    path: str
    git_sha: str | None


@dataclass(frozen=True, slots=True)
class SyncOrder:
    """Who syncs; `first_label`: give `production` to prompts that never had it."""

    actor: str
    first_label: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of a prompt.

    Attributes:
        git_sha: what its version was made from, which may have been long ago.
        made: the state database did not know the version before.
        labelled: it became `production` now.
    """

    name: str
    version: str
    content_hash: str
    git_sha: str | None
    made: bool
    labelled: bool


def read_sources(folder: Path) -> list[Source]:
    """Every prompt of the folder, whole and fit to be served, or none.

    Raises: BadPromptFile with all mistakes; OSError where the folder cannot be read.
    """
    library = load_library(folder, unfit)
    if not library:
        raise BadPromptFile(f"{folder}: no prompt file (NAME.yaml) in it")
    files = {path.stem: path for path in folder.iterdir() if path.suffix in (".yaml", ".yml")}
    git = _Git(folder)
    return [
        Source(prompt, git.path_of(files[name]), git.sha_of(files[name]))
        for name, prompt in library.items()
    ]


def sync(
    database: Database, registry: PromptRegistry, sources: Sequence[Source], order: SyncOrder
) -> list[Synced]:
    """Make versions of what is new; again changes nothing.

    Raises:
        RegistryUnavailable: MLflow is away; the gateway has seen nothing of the sync.
        RegistryRefused: MLflow has a model in a prompt's place.
        Conflict: MLflow and the state database do not have the same versions.
    """
    with database.session() as session:
        known = {source.prompt.name: versions_of(session, source.prompt.name) for source in sources}
    versions = {}
    for source in sources:
        name, content_hash = source.prompt.name, source.prompt.content_hash
        versions[name] = registry.find(name, content_hash)
        if versions[name] is None and known[name] and registry.lacks(name):
            _put_back(registry, known[name])
            versions[name] = registry.find(name, content_hash)
        _require_agreement(registry, source.prompt, versions[name], known[name])
    for source in sources:
        name = source.prompt.name
        versions[name] = versions[name] or registry.put(
            source.prompt, {"git_sha": source.git_sha, "path": source.path}
        )
    with database.transaction() as session:
        hold(session)
        first = order.first_label or session.scalar(select(PromptVersionRow).limit(1)) is None
        return [_stored(session, source, versions, order, first) for source in sources]


def _stored(
    session: Session,
    source: Source,
    versions: Mapping[str, str | None],
    order: SyncOrder,
    first: bool,
) -> Synced:
    prompt, version = source.prompt, versions[source.prompt.name]
    assert version is not None
    known = find_version(session, prompt.name, version)
    row = PromptVersionRow(
        name=prompt.name,
        version=version,
        content_hash=prompt.content_hash,
        content=prompt.content,
        git_sha=source.git_sha,
        path=source.path,
        created_at=now(),
    )
    put_version(session, row)
    labelled = first and label_of(session, prompt.name, PRODUCTION) is None
    if labelled:
        reason = "the prompt had no production version"
        move_label(session, LabelMove(FIRST, prompt.name, version, order.actor, reason))
    git_sha = source.git_sha if known is None else known.git_sha
    return Synced(
        prompt.name, version, prompt.content_hash, git_sha, made=known is None, labelled=labelled
    )


def _put_back(registry: PromptRegistry, known: Sequence[PromptVersionRow]) -> None:
    """Give an emptied MLflow what it had; its numbers come out the same unless there were gaps."""
    for row in known:
        registry.put(row.prompt, {"git_sha": row.git_sha, "path": row.path})


def _require_agreement(
    registry: PromptRegistry, prompt: Prompt, found: str | None, known: Sequence[PromptVersionRow]
) -> None:
    """Conflict if MLflow numbers contents otherwise than the state database knows them.

    A number that MLflow gave anew would be another content under the same name.
    """
    for row in known:
        if row.content_hash == prompt.content_hash or row.version == found:
            there = found if row.content_hash == prompt.content_hash else None
        elif row is known[-1] and found is None:
            there = registry.find(prompt.name, row.content_hash)
        else:
            continue
        if there != row.version:
            raise Conflict(
                f"prompt {prompt.name}: the state database knows version {row.version} "
                f"({row.content_hash[:12]}), MLflow has {f'it as {there}' if there else 'it not'}: "
                "one of the two was emptied or restored; restore both from copies of one time"
            )


def unfit(prompt: Prompt) -> Iterator[Mistake]:
    """What would go wrong later: in a request, in MLflow, or in the gate."""
    for name, value in prompt.params.items():
        if name in wire.OURS or name in wire.DENIED:
            yield Mistake(("params", name), "not for a prompt to set")
        elif name in wire.CHAT and (said := wire.CHAT[name](value, Limits())):
            yield Mistake(("params", name), said)
    yield from _misjudged(prompt)
    try:
        require_storable(prompt)
    except ValueError as error:
        yield Mistake((), str(error))


def _misjudged(prompt: Prompt) -> Iterator[Mistake]:
    """What is wrong with its metrics and its gate."""
    for number, name in enumerate(prompt.evaluation.metrics):
        if (said := _unknown_metric(name)) is not None:
            yield Mistake(("evaluation", "metrics", number), said)
    for number, given in enumerate(prompt.evaluation.gate):
        place = ("evaluation", "gate", number)
        try:
            condition = Condition.model_validate(given)
        except ValidationError as error:
            for item in error.errors():
                yield Mistake((*place, *item["loc"]), item["msg"])
        else:
            if (said := _unknown_metric(condition.metric)) is not None:
                yield Mistake((*place, "metric"), said)


def _unknown_metric(name: str) -> str | None:
    try:
        metric_named(name)
    except ValueError as error:
        return str(error)
    return None


class _Git:
    """What Git says of a folder's files."""

    def __init__(self, folder: Path):
        self._folder = folder
        root = self._ask("rev-parse", "--show-toplevel")
        self._root = None if root is None else Path(root.strip())
        self._sha = (self._ask("rev-parse", "--verify", "-q", "HEAD") or "").strip() or None
        self._tracked = self._paths("ls-files", "-z", "--full-name", "--", ".")
        changed = ("diff", "-z", "--name-only", "--no-relative", "HEAD", "--", ".")
        self._changed = self._paths(*changed)

    def path_of(self, file: Path) -> str:
        """The file from the root of the repository; whole where there is none."""
        path = self._folder.resolve() / file.name
        return str(path if self._root is None else path.relative_to(self._root.resolve()))

    def sha_of(self, file: Path) -> str | None:
        """The commit, with `-dirty` where it does not have the file as it is."""
        path = self.path_of(file)
        clean = path in self._tracked and path not in self._changed
        return self._sha if clean or self._sha is None else self._sha + DIRTY

    def _paths(self, *arguments: str) -> frozenset[str]:
        return frozenset((self._ask(*arguments) or "").split("\0")) - {""}

    def _ask(self, *arguments: str) -> str | None:
        command = ("git", "-C", str(self._folder), *arguments)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None
