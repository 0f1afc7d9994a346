"""The model registry: versions of models in MLflow, and the aliases that name the one in use.

A version is made once for what a training learnt; doing it again finds it. Aliases are `champion`,
`challenger` and `previous`; one that is not set means the plain base model, or nothing.
Every call ends within seconds, also when MLflow does not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.mlflow_api import (
    CALL_SECONDS,
    EXISTS,
    NO_SUCH,
    MLflowAPI,
    MLflowAway,
    MLflowRefused,
    pairs,
    quoted,
)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
ARTIFACT = "model"
DIGEST = "digest"


class RegistryUnavailable(RuntimeError):
    """MLflow is away; the message says where it should be and what happened."""


class RegistryRefused(RuntimeError):
    """MLflow, or what is known of the model, does not allow it; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        version: a whole number, as text; never reused.
        training_id: the MLflow run that made it.
        source: MLflow's address of its files.
        tags: kind, served_name, path, digest, base_digest, dataset_id, verdict_id, …
    """

    name: str
    version: str
    training_id: str
    source: str
    tags: Mapping[str, str]
    description: str
    created_at: datetime


class Registry:
    """The registry at `tracking_uri`. Blocking; may be shared by threads.

    Args:
        seconds: the longest that a call to MLflow may take.

    Raises:
        ValueError: `tracking_uri` is not a server's address.
    """

    def __init__(self, tracking_uri: str, *, seconds: float = CALL_SECONDS):
        self._api = MLflowAPI(tracking_uri, seconds=seconds)

    def register(
        self,
        name: str,
        training_id: str,
        path: Path,
        tags: Mapping[str, str | None],
        description: str = "",
    ) -> str:
        """Make a version of `name`, or find the one there is of this digest and training.

        The version's source is the artifact `model` of the MLflow run `training_id`; the path on
        disk is its tag `path`. A version that is there keeps its tags: it was registered under
        them.

        Args:
            tags: at least `digest`; those that are None are left out.

        Raises:
            RegistryUnavailable: MLflow is away.
            RegistryRefused: there is no such run, or it has no model.
        """
        if not tags.get(DIGEST):
            raise RegistryRefused(f"{name}: a model without the tag {DIGEST} is not registered")
        given = {**tags, "training_id": training_id, "path": str(path)}
        with refusals():
            found = self._versions(name, training_id, str(tags[DIGEST]))
            if found:
                return found[0]
            source = self._source(training_id)
            self._ensure_model(name)
            body = {
                "name": name,
                "source": source,
                "run_id": training_id,
                "tags": pairs(given),
                "description": description,
            }
            made = self._api.post("model-versions/create", body)
            version = str(made["model_version"]["version"])
            return self._first(name, training_id, str(tags[DIGEST]), version)

    def version(self, name: str, version: str) -> ModelVersion | None:
        """The version, or None if there is none."""
        with refusals():
            try:
                found = self._api.get("model-versions/get", name=name, version=version)
            except MLflowRefused as error:
                if error.code == NO_SUCH:
                    return None
                raise
        return _model_version(found["model_version"])

    def aliases(self, name: str) -> dict[str, str]:
        """Versions by their aliases; empty if no such model is registered."""
        with refusals():
            model = self._model(name)
        return {one["alias"]: str(one["version"]) for one in (model or {}).get("aliases", [])}

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """Let `alias` name `version`; None takes the alias away. Again changes nothing.

        Raises:
            RegistryUnavailable: MLflow is away.
            RegistryRefused: there is no such version.
        """
        with refusals():
            if version is not None:
                body = {"name": name, "alias": alias, "version": version}
                self._api.post("registered-models/alias", body)
            elif self._model(name) is not None:
                self._api.delete("registered-models/alias", {"name": name, "alias": alias})

    def _model(self, name: str) -> dict[str, Any] | None:
        try:
            model: dict[str, Any] = self._api.get("registered-models/get", name=name)
        except MLflowRefused as error:
            if error.code == NO_SUCH:
                return None
            raise
        return dict(model["registered_model"])

    def _ensure_model(self, name: str) -> None:
        try:
            self._api.post("registered-models/create", {"name": name})
        except MLflowRefused as error:
            if error.code != EXISTS:
                raise

    def _source(self, training_id: str) -> str:
        try:
            listed = self._api.get("artifacts/list", run_id=training_id, path=ARTIFACT)
        except MLflowRefused as error:
            if error.code == NO_SUCH:
                raise RegistryRefused(f"MLflow has no run {training_id}; train again") from error
            raise
        if not listed.get("files"):
            raise RegistryRefused(
                f"MLflow's run {training_id} has no artifact {ARTIFACT!r}: the model was not "
                "uploaded; run the training's stage again, it does not train again"
            )
        return f"{listed['root_uri']}/{ARTIFACT}"

    def _versions(self, name: str, training_id: str, digest: str) -> list[str]:
        """Versions of this digest and training, oldest first."""
        conditions = f"name = {quoted(name)} AND run_id = {quoted(training_id)}"
        conditions += f" AND tags.{DIGEST} = {quoted(digest)}"
        found = self._api.get("model-versions/search", filter=conditions, max_results=100)
        return sorted((str(one["version"]) for one in found.get("model_versions", [])), key=int)

    def _first(self, name: str, training_id: str, digest: str, made: str) -> str:
        """The oldest of equal versions. Two that register at once agree on it: MLflow has no
        unique key for this, so the one that came second takes its version away again."""
        first = min([made, *self._versions(name, training_id, digest)], key=int)
        if first != made:
            self._api.delete("model-versions/delete", {"name": name, "version": made})
        return first


@contextmanager
def refusals() -> Iterator[None]:
    """What MLflow's API raises, as what this registry raises."""
    try:
        yield
    except MLflowAway as error:
        raise RegistryUnavailable(f"the model registry is away: {error}") from error
    except MLflowRefused as error:
        raise RegistryRefused(str(error)) from error


def _model_version(found: Mapping[str, Any]) -> ModelVersion:
    tags = {one["key"]: one.get("value", "") for one in found.get("tags", [])}
    return ModelVersion(
        name=found["name"],
        version=str(found["version"]),
        training_id=found.get("run_id", ""),
        source=found.get("source", ""),
        tags=tags,
        description=found.get("description", ""),
        created_at=datetime.fromtimestamp(found["creation_timestamp"] / 1000, UTC),
    )
