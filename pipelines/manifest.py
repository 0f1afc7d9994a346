"""The manifest of a frozen data set: what its files hold, under an id that is made from them.

A data set of any kind is a folder with `manifest.json` and the files that it names. Invariant: the
same files have the same id; what else is told of them (where they came from, what was left out) is
no part of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gateway.whole_file import write_whole

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ID_CHARACTERS = 32


class DatasetChanged(ValueError):
    """A file of a data set is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file holds. `sha256` is hex; `users`: how many there are, where users are known."""

    sha256: str
    rows: int
    users: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a data set holds, and how it came to be.

    Attributes:
        name: of the model that it is for.
        files: facts by file name.
        about: what else is to be known of it, in plain values: its source, what was left out.
    """

    name: str
    files: Mapping[str, FileFacts]
    about: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def parse(cls, content: Any) -> "Manifest":
        """The manifest that was written as `as_dict`.

        Raises:
            DatasetChanged: it is none, or its id is not that of its content.
        """
        try:
            fields = dict(content)
            given = fields.pop("dataset_id")
            files = {name: FileFacts(**facts) for name, facts in fields.pop("files").items()}
            name, version = fields.pop("name"), fields.pop("schema_version")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetChanged(f"not a data set's manifest ({error!r})") from error
        manifest = cls(name, files, fields, version)
        if manifest.dataset_id != given:
            raise DatasetChanged(f"says {given}, but its content is {manifest.dataset_id}")
        return manifest

    @property
    def dataset_id(self) -> str:
        """The first 32 hex digits of the SHA-256 of what it holds."""
        held = {
            "schema_version": self.schema_version,
            "name": self.name,
            "files": {name: facts.as_dict() for name, facts in self.files.items()},
        }
        return hashlib.sha256(canonical(held).encode()).hexdigest()[:ID_CHARACTERS]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(facts.rows for facts in self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "dataset_id": self.dataset_id,
            "name": self.name,
            "files": {name: facts.as_dict() for name, facts in self.files.items()},
            **self.about,
            "schema_version": self.schema_version,
        }

    def text(self) -> str:
        """As it is written to `manifest.json`."""
        return json.dumps(self.as_dict(), indent=2) + "\n"


def seal(folder: Path, name: str, rows: Mapping[str, int], about: Mapping[str, Any]) -> Manifest:
    """Write the manifest of the files in `folder`; `rows` are how many each of them holds."""
    files = {file: FileFacts(sha256_of(folder / file), count) for file, count in rows.items()}
    manifest = Manifest(name, files, about)
    write_whole(folder / MANIFEST, manifest.text())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises DatasetChanged if it is missing, or not one of ours."""
    path = folder / MANIFEST
    try:
        return Manifest.parse(json.loads(path.read_bytes()))
    except DatasetChanged as error:
        raise DatasetChanged(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise DatasetChanged(f"{path}: not a data set's manifest ({error})") from error


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare the files in `folder` with `manifest`. Raises DatasetChanged, naming the file."""
    for name, facts in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DatasetChanged(f"{path}: is not there")
        found = sha256_of(path)
        if found != facts.sha256:
            raise DatasetChanged(
                f"{path}: its SHA-256 is {found}, the manifest of {manifest.dataset_id} says"
                f" {facts.sha256}; fetch the data set again"
            )


def is_whole(folder: Path) -> bool:
    """Whether a data set is there as its manifest says."""
    try:
        verify(folder, read_manifest(folder))
    except DatasetChanged:
        return False
    return True


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """JSON in which the same value is always the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
