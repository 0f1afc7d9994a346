"""What a reload replaces as a whole: the configuration in force and all that is derived from it."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gateway.configuration import Configuration, ConfigurationError, Metric, load_configuration
from gateway.prices import PriceTable
from gateway.routing import Routes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One configuration, with its routes. A request keeps the one that it began with."""

    configuration: Configuration
    routes: Routes
    config_hash: str


def snapshot(configuration: Configuration, secrets: Mapping[str, str]) -> Snapshot:
    """Derive everything from a configuration. `secrets`: the environment's variables."""
    for alias, model in configuration.models.items():
        if model.tokenizer is not None and find_spec("tokenizers") is None:
            raise ConfigurationError(
                f"models.{alias}.tokenizer: the package tokenizers is missing; "
                "pip install -c constraints.txt -e '.[tokens]'"
            )
    routes = Routes(configuration, PriceTable(configuration), secrets)
    return Snapshot(configuration, routes, configuration.config_hash)


class Live:
    """The snapshot in force, renewed when the file changes.

    Attributes:
        current: what new requests use.
        error: why the file as it is now was refused, or None. The last good one stays in force.
    """

    def __init__(self, path: Path, secrets: Mapping[str, str]):
        self._path = path
        self._secrets = secrets
        self._seen = self._stamp()
        self.current = snapshot(load_configuration(path), secrets)
        self.error: str | None = None

    def reload_if_changed(self) -> bool:
        """Load the file again if it changed; True if a new snapshot is in force. Reads the disk."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            fresh = snapshot(load_configuration(self._path), self._secrets)
        except ConfigurationError as error:
            self.error = str(error)
            _log.error("the configuration in force stays as it was: %s", error)
            return False
        self.error = None
        changed = fresh.config_hash != self.current.config_hash
        self.current = fresh
        _log.info("configuration %s is in force", fresh.config_hash)
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class DeclaredMetrics(Mapping[str, Metric]):
    """The feedback metrics of whatever configuration is in force."""

    def __init__(self, live: Live):
        self._live = live

    def __getitem__(self, name: str) -> Metric:
        return self._live.current.configuration.feedback.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._live.current.configuration.feedback.metrics)

    def __len__(self) -> int:
        return len(self._live.current.configuration.feedback.metrics)
