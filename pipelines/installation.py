"""What a stage, a command or the controller works with: one installation, opened from settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.configuration import (
    WILDCARD,
    Configuration,
    ConfigurationError,
    Upstream,
    load_configuration,
)
from gateway.database import Database, open_database
from gateway.request_log import LogReader
from gateway.settings import Settings

LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class Installation:
    """Settings, configuration, state database and request log of one home."""

    settings: Settings
    configuration: Configuration
    database: Database
    reader: LogReader

    @property
    def adapters_dir(self) -> Path:
        """Where adapters lie that the engine loads: one folder each, named as it is served."""
        return self.settings.home / "adapters"

    @property
    def lifecycle_dir(self) -> Path:
        """Where the workspaces of models lie, one folder each."""
        return self.settings.home / "lifecycle"

    @property
    def run_dir(self) -> Path:
        """Locks and signs of life."""
        return self.settings.home / "run"

    @property
    def lora_rank(self) -> int:
        """The highest rank of an adapter that the engine of the local stack takes."""
        engine = self.configuration.stack.get("engine") or {}
        return int(engine.get("lora_rank", LORA_RANK))

    def model_folder(self, name: str) -> Path:
        """Folder of a base model: a path, or a name among the converted models.

        Raises: ConfigurationError if there is none.
        """
        models = Path(self.configuration.stack.get("models_dir") or self.settings.home / "models")
        for folder in (models / name, Path(name)):
            if (folder / "config.json").exists():
                return folder.absolute()
        raise ConfigurationError(
            f"base_model: {name!r} is neither a model in {models} nor a folder with a config.json; "
            "llmops up converts the packaged one"
        )

    def upstream_of(self, alias: str) -> tuple[Upstream, str]:
        """The upstream that answers `alias`, and the name that it knows the plain model by."""
        model = self.configuration.models.get(alias)
        if model is None:
            known = ", ".join(sorted(self.configuration.models.keys() - {WILDCARD})) or "none"
            raise ConfigurationError(
                f"alias: no model {alias!r} (there are: {known}); add it under models"
            )
        return self.configuration.upstreams[model.upstream], model.model or alias

    def tracking_uri(self) -> str:
        """MLflow's address; ConfigurationError if none is configured."""
        uri = self.configuration.mlflow.tracking_uri
        if uri is None:
            raise ConfigurationError("mlflow.tracking_uri: is not set; this needs MLflow")
        return uri


@contextmanager
def open_installation(settings: Settings) -> Iterator[Installation]:
    """Open the installation that `settings` name; closed at the end of the block."""
    configuration = load_configuration(settings.config_path)
    database = open_database(settings.database_url)
    try:
        reader = LogReader.open(settings, configuration.log)
        yield Installation(settings, configuration, database, reader)
    finally:
        database.close()
