"""Checkpoints of a training under way: whole ones only, and only of the very same training.

The folder carries the fingerprint of what is trained. A checkpoint counts once it is sealed: a file
with the SHA-256 of each of its files, written last, under another name first. What a kill or a full
disk left behind is passed over, and so is what was changed since.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.whole_file import write_whole

FINGERPRINT = "fingerprint"
SEAL = "sealed.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: its folder, and the steps that were done."""

    folder: Path
    step: int


def prepare(folder: Path, fingerprint: str) -> None:
    """Make `folder` ready for a training; checkpoints of any other one are removed."""
    mark = folder / FINGERPRINT
    if not mark.is_file() or mark.read_text() != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_whole(mark, fingerprint.encode())


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole."""
    write_whole(checkpoint / SEAL, orjson.dumps(_digests(checkpoint)))


def newest(folder: Path) -> Checkpoint | None:
    """The latest whole checkpoint; those that are not whole are removed."""
    found = []
    for one in folder.glob(f"{PREFIX}*"):
        step = one.name.removeprefix(PREFIX)
        if step.isdigit() and _is_whole(one):
            found.append(Checkpoint(one, int(step)))
        else:
            shutil.rmtree(one, ignore_errors=True)
    return max(found, key=lambda one: one.step, default=None)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(folder: Path) -> None:
    """Have the files of `folder`, and their names, on the disk."""
    for one in [*folder.iterdir(), folder]:
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_whole(checkpoint: Path) -> bool:
    try:
        sealed = orjson.loads((checkpoint / SEAL).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(sealed == _digests(checkpoint))


def _digests(checkpoint: Path) -> Mapping[str, str]:
    files = (one for one in sorted(checkpoint.rglob("*")) if one.is_file() and one.name != SEAL)
    return {one.relative_to(checkpoint).as_posix(): digest_of(one) for one in files}
