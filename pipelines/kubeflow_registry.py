"""The Kubeflow Model Registry over its REST API, v1alpha3.

What is put there is looked for first, by an external id that is made from our own ids, so putting
it again finds it: also where the answer to the first attempt was lost.

A registered model has our model's name, a version our version's number, with the ids that it was
made from as custom properties; its files are a model artifact, each move of the champion a document
artifact of the version that it was about.

Source: https://github.com/kubeflow/model-registry, api/openapi/model-registry.yaml
"""

from collections.abc import Mapping
from typing import Any

from pipelines.json_server import JsonServer, ServerRefused

API = "/api/model_registry/v1alpha3"
TEXT_CHARACTERS = 4000
NOT_FOUND, CONFLICT = 404, 409

Properties = Mapping[str, str | None]
Entity = dict[str, Any]


class KubeflowRegistry:
    """One registry. All methods raise what `JsonServer.call` raises."""

    def __init__(self, server: JsonServer):
        self._server = server

    async def model(self, name: str) -> Entity:
        """The registered model of that name, made if there is none; whoever made it."""
        named = {"name": name}
        found = await self._find("registered_model", named)
        if found is not None:
            return found
        body = {**named, "externalId": f"llmops/{name}", "state": "LIVE"}
        try:
            return await self._server.call("POST", f"{API}/registered_models", body)
        except ServerRefused as error:
            found = await self._find("registered_model", named)
            if error.status != CONFLICT or found is None:
                raise
            return found

    async def version(
        self, model: Entity, external_id: str, version: str, author: str, properties: Properties
    ) -> Entity:
        """The version with this external id, made if there is none."""
        body = {
            "registeredModelId": model["id"],
            "name": version,
            "author": author,
            "state": "LIVE",
            "customProperties": _metadata(properties),
        }
        return await self._ensure("model_version", external_id, f"{API}/model_versions", body)

    async def files(self, version: Entity, external_id: str, body: Mapping[str, str]) -> Entity:
        """A version's model artifact."""
        typed = {"artifactType": "model-artifact", **body}
        return await self._artifact(version, external_id, typed)

    async def document(
        self, version: Entity | None, external_id: str, description: str, properties: Properties
    ) -> Entity:
        """A document artifact of a version; of none where there is none that it is about."""
        body = {
            "artifactType": "doc-artifact",
            "description": description[:TEXT_CHARACTERS],
            "customProperties": _metadata(properties),
        }
        return await self._artifact(version, external_id, body)

    async def describe(self, model: Entity, properties: Properties) -> None:
        """Set custom properties of a registered model; None takes one away. Others stay."""
        before = model.get("customProperties") or {}
        kept = {name: value for name, value in before.items() if name not in properties}
        after = kept | _metadata(properties)
        if after != before:
            path = f"{API}/registered_models/{model['id']}"
            await self._server.call("PATCH", path, {"customProperties": after})

    async def _artifact(
        self, version: Entity | None, external_id: str, body: Mapping[str, Any]
    ) -> Entity:
        of = "" if version is None else f"/model_versions/{version['id']}"
        named = {"name": external_id.rpartition("/")[2], **body}
        return await self._ensure("artifact", external_id, f"{API}{of}/artifacts", named)

    async def _ensure(
        self, kind: str, external_id: str, path: str, body: Mapping[str, Any]
    ) -> Entity:
        found = await self._find(kind, {"externalId": external_id})
        if found is not None:
            return found
        return await self._server.call("POST", path, {**body, "externalId": external_id})

    async def _find(self, kind: str, query: Mapping[str, str]) -> Entity | None:
        try:
            return await self._server.call("GET", f"{API}/{kind}", query=query)
        except ServerRefused as error:
            if error.status != NOT_FOUND:
                raise
            return None


def _metadata(properties: Properties) -> dict[str, dict[str, str]]:
    return {
        name: {"metadataType": "MetadataStringValue", "string_value": value[:TEXT_CHARACTERS]}
        for name, value in properties.items()
        if value is not None
    }
