"""A file that is there whole, or as it was before: written beside its place, then moved into it."""

import os
import secrets
from pathlib import Path

PRIVATE = 0o600


def write_whole(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Put `content` at `path`, whose folder is made if need be.

    `private`: for its owner alone, also while it is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(fresh, flags, PRIVATE if private else 0o666), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
