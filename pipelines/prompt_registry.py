"""Prompts in MLflow's registry: a version for each content, and aliases for labels.

MLflow keeps a prompt as a registered model with a tag that says so, and a model and a prompt cannot
have one name. So a prompt is `prompt.NAME` there: the model `extractor` and the prompt of that name
can both be. MLflow's own client loads what is written here.

Source: mlflow/store/model_registry/abstract_store.py, `create_prompt_version`, of MLflow 3.17.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.mlflow_api import (
    CALL_SECONDS,
    EXISTS,
    NO_SUCH,
    MLflowAPI,
    MLflowRefused,
    pairs,
    quoted,
)
from pipelines.registry import RegistryRefused, refusals
from prompts.prompt import Prompt

IS_PROMPT = "mlflow.prompt.is_prompt"
TEXT, KIND, MODEL = "mlflow.prompt.text", "_mlflow_prompt_type", "_mlflow_prompt_model_config"
SOURCE = "prompt-template"  # MLflow wants one, and takes no other for a prompt
CONTENT_HASH, CONTENT = "content_hash", "content"
LONGEST_TAG = 100_000


def registered_name(name: str) -> str:
    """What MLflow knows the prompt `name` by."""
    return f"prompt.{name}"


def require_storable(prompt: Prompt) -> None:
    """Raises ValueError if the prompt is larger than MLflow takes."""
    for tag, value in _content(prompt).items():
        if len(value) > LONGEST_TAG:
            raise ValueError(
                f"prompt {prompt.name}: {tag}: {len(value)} characters of JSON, and MLflow takes "
                f"{LONGEST_TAG}"
            )


class PromptRegistry:
    """The prompts of the MLflow at `tracking_uri`. Blocking; may be shared by threads.

    Every call raises RegistryUnavailable if MLflow is away, RegistryRefused if it says no.

    Args:
        seconds: the longest that a call to MLflow may take.

    Raises:
        ValueError: `tracking_uri` is not a server's address.
    """

    def __init__(self, tracking_uri: str, *, seconds: float = CALL_SECONDS):
        self._api = MLflowAPI(tracking_uri, seconds=seconds)

    def find(self, name: str, content_hash: str) -> str | None:
        """The version with this content, if there is one."""
        with refusals():
            found = self._versions(name, content_hash)
        return found[0] if found else None

    def lacks(self, name: str) -> bool:
        """Whether MLflow knows no such prompt at all."""
        with refusals():
            return self._model(name) is None

    def put(self, prompt: Prompt, tags: Mapping[str, str | None]) -> str:
        """Make a version of the prompt, or find the one there is with this content.

        A version that is there keeps its tags: it was made under them.

        Args:
            tags: beside the content's own; those that are None are left out.

        Raises:
            RegistryRefused: MLflow has a model of that name.
        """
        with refusals():
            found = self._versions(prompt.name, prompt.content_hash)
            if found:
                return found[0]
            self._ensure(prompt.name)
            given = {**_content(prompt), CONTENT_HASH: prompt.content_hash, **tags}
            body = {
                "name": registered_name(prompt.name),
                "source": SOURCE,
                "tags": pairs({IS_PROMPT: "true", KIND: "chat", **given}),
                "description": prompt.description,
            }
            answer = self._api.post("model-versions/create", body)
            return self._first(prompt, str(answer["model_version"]["version"]))

    def aliases(self, name: str) -> dict[str, str]:
        """Versions by their labels; empty if MLflow has no such prompt."""
        with refusals():
            model = self._model(name)
        return {one["alias"]: str(one["version"]) for one in (model or {}).get("aliases", [])}

    def set_alias(self, name: str, label: str, version: str) -> None:
        """Let a label name a version. Again changes nothing."""
        body = {"name": registered_name(name), "alias": label, "version": version}
        with refusals():
            self._api.post("registered-models/alias", body)

    def _versions(self, name: str, content_hash: str) -> list[str]:
        """Versions with this content, oldest first."""
        conditions = (
            f"name = {quoted(registered_name(name))} AND tags.`{IS_PROMPT}` = 'true' AND "
            f"tags.{CONTENT_HASH} = {quoted(content_hash)}"
        )
        found = self._api.get("model-versions/search", filter=conditions, max_results=100)
        return sorted((str(one["version"]) for one in found.get("model_versions", [])), key=int)

    def _first(self, prompt: Prompt, made: str) -> str:
        """The oldest of equal versions: of two that were made at once the second goes again."""
        first = min([made, *self._versions(prompt.name, prompt.content_hash)], key=int)
        if first != made:
            body = {"name": registered_name(prompt.name), "version": made}
            self._api.delete("model-versions/delete", body)
        return first

    def _model(self, name: str) -> dict[str, Any] | None:
        try:
            found = self._api.get("registered-models/get", name=registered_name(name))
        except MLflowRefused as error:
            if error.code == NO_SUCH:
                return None
            raise
        return dict(found["registered_model"])

    def _ensure(self, name: str) -> None:
        model = self._model(name)
        if model is None:
            body = {"name": registered_name(name), "tags": pairs({IS_PROMPT: "true"})}
            try:
                self._api.post("registered-models/create", body)
                return
            except MLflowRefused as error:
                if error.code != EXISTS:
                    raise
            model = self._model(name) or {}
        if not any(one["key"] == IS_PROMPT for one in model.get("tags", [])):
            raise RegistryRefused(
                f"MLflow has a model named {registered_name(name)}, and a prompt cannot have the "
                "same name; rename or delete the model"
            )


def _content(prompt: Prompt) -> dict[str, str]:
    """A prompt as MLflow's own client reads it, and whole."""
    content = prompt.content
    configuration = {"model_name": prompt.model, **prompt.params}
    return {
        TEXT: json.dumps(content["messages"]),
        MODEL: json.dumps(configuration),
        CONTENT: json.dumps(content, ensure_ascii=False),
    }
