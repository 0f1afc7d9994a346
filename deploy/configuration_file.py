"""Which configuration a start uses, and the link that makes every other command use it too.

`LLMOPS_HOME/gateway.yaml` is what all processes and commands read where LLMOPS_CONFIG does not
name another file. `up` makes it a link to the file in force: the user's own, `stack.yaml` (a copy
of the packaged default, to be edited), or `light.yaml` (generated for `--upstream`).
"""

import os
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from gateway.configuration import ConfigurationError
from gateway.settings import Settings

DEFAULT = "llmops.yaml"
LINK = "gateway.yaml"
GENERATED_HEADER = "# Made by `llmops up --upstream`; written anew by each such start.\n"


def default_text() -> str:
    """The packaged default configuration."""
    return files("deploy").joinpath(DEFAULT).read_text()


def in_force(settings: Settings, given: Path | None, *, make: bool = True) -> Path:
    """The file that a start uses: `given`, LLMOPS_CONFIG, or the one in LLMOPS_HOME.

    The last is made from the packaged default where it is missing; with `make` False the packaged
    file itself stands in for it. Raises ConfigurationError.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigurationError(f"{given}: no such file")
        return given.absolute()
    if settings.secret_value("LLMOPS_CONFIG") or _is_own_file(settings):
        return settings.config_path
    stack = settings.home / "stack.yaml"
    if not stack.exists():
        if not make:
            return Path(str(files("deploy").joinpath(DEFAULT)))
        settings.home.mkdir(parents=True, exist_ok=True)
        stack.write_text(default_text())
    return stack


def generate_light(settings: Settings, upstream: dict[str, Any], ports: tuple[int, int]) -> Path:
    """Write a configuration with one upstream for every model; `ports`: gateway and admin."""
    content: dict[str, Any] = {
        "server": {"port": ports[0]},
        "admin": {"port": ports[1]},
        "upstreams": {"default": upstream},
        "models": {"*": {"upstream": "default"}},
        "feedback": {"metrics": {"helpful": {"type": "boolean"}}},
        "stack": {name: {"enabled": False} for name in ("engine", "redis", "mlflow", "embeddings")},
    }
    if find_spec("deltalake") is None:  # the spool alone keeps the log
        content["stack"] |= {"shipper": {"enabled": False}}
    settings.home.mkdir(parents=True, exist_ok=True)
    path = settings.home / "light.yaml"
    path.write_text(GENERATED_HEADER + yaml.safe_dump(content, sort_keys=False))
    return path


def linked(settings: Settings, path: Path) -> Path:
    """The path by which processes and commands read `path`.

    Raises ConfigurationError where a file of the user's stands in the way of the link.
    """
    if settings.secret_value("LLMOPS_CONFIG") or path == settings.home / LINK:
        return path
    if _is_own_file(settings):
        raise ConfigurationError(
            f"{settings.home / LINK} is a file of yours: commands would read it and not {path}; "
            f"move it away, or pass it with --config"
        )
    return settings.home / LINK


def link(settings: Settings, path: Path) -> None:
    """Make `path` what every process and command reads."""
    target = linked(settings, path)
    if target == path:
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(path)
    fresh.replace(target)


def _is_own_file(settings: Settings) -> bool:
    path = settings.home / LINK
    return path.is_file() and not path.is_symlink()
