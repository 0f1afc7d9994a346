"""What a stage, a command or the controller works with: one installation, opened from settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from gateway.configuration import Configuration, ConfigurationError, Upstream, load_configuration
from gateway.database import Database, open_database
from gateway.request_log import LogReader
from gateway.settings import Settings
from pipelines.rollout import Replicas
from pipelines.tables import TrainingRow

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
            known = ", ".join(sorted(self.configuration.models))
            raise ConfigurationError(f"alias: no model {alias!r} (there are: {known})")
        return self.configuration.upstreams[model.upstream], model.model or alias

    def engine(self, upstream: str) -> tuple[tuple[str, ...], str | None]:
        """Addresses of every replica of an upstream, and the credential for them."""
        given = self.configuration.upstreams[upstream]
        name = given.api_key_env
        credential = self.settings.secret_value(name) if name else None
        return given.replicas or (given.url,), credential

    def replicas_of(self, alias: str) -> Replicas:
        """Every replica of the engine that answers `alias`."""
        self.upstream_of(alias)
        return Replicas(*self.engine(self.configuration.models[alias].upstream))

    def model_names(self) -> frozenset[str]:
        """Names of the models that were trained here."""
        with self.database.session() as session:
            return frozenset(session.scalars(select(TrainingRow.name).distinct()))

    def tracking_uri(self) -> str:
        """MLflow's address; ConfigurationError if none is configured."""
        uri = self.configuration.mlflow.tracking_uri
        if uri is None:
            raise ConfigurationError("mlflow.tracking_uri: is not set; training needs MLflow")
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
