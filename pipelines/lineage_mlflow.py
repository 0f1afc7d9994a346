"""What MLflow knows of a model's versions and trainings, for the lineage check.

Every call is bounded in time; once MLflow did not answer it is not asked again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.mlflow_api import NO_SUCH, MLflowAPI, MLflowAway, MLflowRefused, quoted
from pipelines.registry import ARTIFACT

ACTIVE, FINISHED = "active", "FINISHED"


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version in the registry: the run that made it, and its tags."""

    version: str
    training_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run. `active`: it was not deleted."""

    active: bool
    status: str
    tags: Mapping[str, str]


class MLflowFacts:
    """The MLflow server at `tracking_uri`.

    Raises (all methods):
        MLflowAway: it does not answer, or refused for another reason than that there is no such
            thing.
    """

    def __init__(self, tracking_uri: str):
        self._api = MLflowAPI(tracking_uri)
        self._away: MLflowAway | None = None

    def versions(self, name: str) -> Mapping[str, KnownVersion]:
        """Versions of a registered model by their number."""
        found: dict[str, KnownVersion] = {}
        query: dict[str, str | int] = {"filter": f"name = {quoted(name)}", "max_results": 1000}
        while True:
            page = self._get("model-versions/search", **query) or {}
            for one in page.get("model_versions", []):
                number = str(one["version"])
                found[number] = KnownVersion(number, one.get("run_id", ""), _tags(one))
            if not page.get("next_page_token"):
                return found
            query["page_token"] = page["next_page_token"]

    def aliases(self, name: str) -> Mapping[str, str]:
        """Versions of a registered model by their aliases."""
        model = (self._get("registered-models/get", name=name) or {}).get("registered_model", {})
        return {one["alias"]: str(one["version"]) for one in model.get("aliases", [])}

    def run(self, training_id: str) -> KnownRun | None:
        """The run of a training, deleted or not; None if there never was one."""
        found = self._get("runs/get", run_id=training_id)
        if found is None:
            return None
        info, data = found["run"]["info"], found["run"].get("data", {})
        return KnownRun(info["lifecycle_stage"] == ACTIVE, info["status"], _tags(data))

    def model_files(self, training_id: str) -> frozenset[str]:
        """Names of the model's files, in the top of its folder, that the run has."""
        listed = self._get("artifacts/list", run_id=training_id, path=ARTIFACT) or {}
        return frozenset(one["path"].rpartition("/")[2] for one in listed.get("files", []))

    def _get(self, what: str, **query: str | int) -> dict[str, Any] | None:
        if self._away is not None:
            raise self._away
        try:
            return self._api.get(what, **query)
        except MLflowRefused as error:
            if error.code == NO_SUCH:
                return None
            self._away = MLflowAway(str(error))
        except MLflowAway as error:
            self._away = error
        raise self._away


def _tags(thing: Mapping[str, Any]) -> dict[str, str]:
    return {one["key"]: one.get("value", "") for one in thing.get("tags", [])}
