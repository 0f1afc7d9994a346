"""Prompt files and golden cases as a Git repository has them at a revision, from its objects; or in
its work tree.

A revision is read whole, and nothing is checked out. Messages call a file `REVISION:PATH`, as Git
does. What a revision that is compared *with* has wrong is remembered and refused where it is
wanted: a branch that repairs a broken file must be comparable.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from evals.cases import CasesUnreadable
from evals.golden_cases import GOLDEN, GoldenCase, load_golden
from prompts.library import LIBRARY, BadPromptFile, Check, parse_library, parse_prompt
from prompts.prompt import Prompt

GIT_SECONDS = 60
SHORT = 12
YAML = (".yaml", ".yml")
DEEPEN = (
    "this clone is shallow: run: git fetch --unshallow (or git fetch --deepen=200; "
    "in a workflow: actions/checkout with fetch-depth: 0)"
)


class RevisionUnavailable(ValueError):
    """Git cannot give what is asked for; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Revision:
    """What there is at one revision.

    Attributes:
        name: as it was asked for; sha: the commit, None for the work tree.
        prompts: by name. origins: the file of each.
        broken: what is wrong with prompt files that cannot be read, by path.
        files: contents of the folder of golden cases, by path from the root.
        golden: that folder.
    """

    name: str
    sha: str | None
    prompts: Mapping[str, Prompt]
    origins: Mapping[str, str]
    broken: Mapping[str, str]
    files: Mapping[str, bytes] = field(repr=False)
    golden: str

    def __str__(self) -> str:
        return self.name if self.sha is None else f"{self.name} ({self.sha[:SHORT]})"

    def has_cases(self, name: str) -> bool:
        """Whether there is a file of golden cases of that name, or path from the root."""
        return self._path(name) is not None

    def cases(self, name: str) -> tuple[GoldenCase, ...]:
        """The golden cases of a file. Raises CasesUnreadable with file and line."""
        path = self._path(name)
        if path is None:
            raise CasesUnreadable(
                f"{self.name}:{self.golden}/{name}: there is no such file of golden cases"
            )
        with TemporaryDirectory() as folder:
            copy, origin = Path(folder) / "cases.jsonl", f"{self.name}:{path}"
            copy.write_bytes(self.files[path])
            try:
                found = load_golden(copy)
            except CasesUnreadable as error:
                raise CasesUnreadable(str(error).replace(str(copy), origin)) from error
            return tuple(replace(one, where=one.where.replace(str(copy), origin)) for one in found)

    def _path(self, name: str) -> str | None:
        return next((one for one in (f"{self.golden}/{name}", name) if one in self.files), None)


class Repository:
    """The Git repository that has the prompt files in `library` and golden cases in `golden`.

    Raises: RevisionUnavailable where the folders are not in one repository.
    """

    def __init__(self, library: Path = LIBRARY, golden: Path = GOLDEN):
        self.root = library if library.is_dir() else Path()
        self.root = Path(self._ask("rev-parse", "--show-toplevel").strip()).resolve()
        self._library, self._golden = (self._inside(one) for one in (library, golden))

    def commit(self, name: str) -> str:
        """The commit that `name` names."""
        try:
            wanted = f"{name}^{{commit}}"
            return self._ask("rev-parse", "--verify", "-q", "--end-of-options", wanted).strip()
        except RevisionUnavailable as error:
            hint = DEEPEN if self._shallow() else "it may have to be fetched: git fetch origin"
            raise RevisionUnavailable(f"there is no revision {name!r} here; {hint}") from error

    def fork_point(self, base: str, head: str) -> str:
        """The newest commit that both revisions go back to: what a branch was made from."""
        commits = self.commit(base), self.commit(head)
        try:
            return self._ask("merge-base", *commits).strip()
        except RevisionUnavailable as error:
            hint = f"; {DEEPEN}" if self._shallow() else ""
            raise RevisionUnavailable(
                f"{base} and {head} have no commit in common{hint}"
            ) from error

    def revision(
        self, name: str, check: Check | None = None, commit: str | None = None
    ) -> Revision:
        """A revision; with `check` a mistake in any of its prompt files is raised.

        Args:
            commit: what is read, where that is not what `name` names.

        Raises: RevisionUnavailable, BadPromptFile.
        """
        sha = commit or self.commit(name)
        listed = self._ask("ls-tree", "-rz", sha, "--", f"{self._library}/", f"{self._golden}/")
        blobs = dict[str, str]()
        for entry in listed.split("\0")[:-1]:
            mode, kind, blob, path = entry.replace("\t", " ", 1).split(" ", 3)
            if kind == "blob" and mode != "120000":  # a link's content is where it leads
                blobs[path] = blob
        contents = self._blobs([*blobs.values()])
        return self._read(name, sha, dict(zip(blobs, contents, strict=True)), check)

    def work_tree(self, check: Check | None = None) -> Revision:
        """The files as they are now, committed or not. Raises BadPromptFile."""
        files = {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for folder in (self._library, self._golden)
            for path in sorted((self.root / folder).rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        return self._read("work tree", None, files, check)

    def uncommitted(self) -> tuple[str, ...]:
        """Files of prompts and cases that are not in HEAD as they are."""
        told = self._ask("status", "--porcelain", "-z", "--no-renames", "-uall", "--",
                         self._library, self._golden)  # fmt: skip
        return tuple(entry[3:] for entry in told.split("\0")[:-1])

    def _read(
        self, name: str, sha: str | None, files: Mapping[str, bytes], check: Check | None
    ) -> Revision:
        inside = f"{self._library}/"
        sources = {
            f"{name}:{path}": content
            for path, content in files.items()
            if path.startswith(inside) and "/" not in path[len(inside) :] and path.endswith(YAML)
        }
        broken: dict[str, str] = {}
        if check is not None:
            parse_library(sources.items(), check)
        found, origins = dict[str, Prompt](), dict[str, str]()
        for origin, content in sources.items():
            try:
                prompt = parse_prompt(content, origin)
            except BadPromptFile as error:
                broken[origin.removeprefix(f"{name}:")] = str(error)
                continue
            found[prompt.name] = prompt
            origins[prompt.name] = origin.removeprefix(f"{name}:")
        golden = {path: content for path, content in files.items() if not path.startswith(inside)}
        return Revision(name, sha, found, origins, broken, golden, self._golden)

    def _blobs(self, blobs: Sequence[str]) -> list[bytes]:
        """The contents of objects, in order."""
        told, found = self._run("cat-file", "--batch", given="\n".join(blobs).encode()), []
        for blob in blobs:
            head, _, told = told.partition(b"\n")
            if not head.startswith(blob.encode()) or head.endswith(b"missing"):
                raise RevisionUnavailable(f"{self.root}: Git has no object {blob}; run: git fsck")
            size = int(head.rsplit(b" ", 1)[1])
            found.append(told[:size])
            told = told[size + 1 :]
        return found

    def _inside(self, folder: Path) -> str:
        path = folder.resolve()
        if not path.is_relative_to(self.root):
            raise RevisionUnavailable(f"{folder}: not in the repository {self.root}")
        return path.relative_to(self.root).as_posix()

    def _shallow(self) -> bool:
        return self._ask("rev-parse", "--is-shallow-repository").strip() == "true"

    def _ask(self, *arguments: str) -> str:
        return self._run(*arguments).decode(errors="surrogateescape")

    def _run(self, *arguments: str, given: bytes = b"") -> bytes:
        command = ("git", "-C", str(self.root), *arguments)
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, timeout=GIT_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise RevisionUnavailable("git is not installed; prompts are read from it") from error
        except subprocess.TimeoutExpired as error:
            raise RevisionUnavailable(f"git {arguments[0]}: no end in {GIT_SECONDS} s") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
            raise RevisionUnavailable(f"git {arguments[0]}: {said or 'it failed'}")
        return done.stdout
