"""`GET /v2/models/{name}` and its readiness: what the model server says of an alias's versions."""

from urllib.parse import quote

import orjson

from gateway.errors import BadRequest, ModelServerAway, NoVersion, UpstreamFailure
from gateway.keys import Key
from gateway.live import Live
from gateway.live_splits import LiveSplits
from gateway.routing import Target
from gateway.upstream import Transport


class PredictionStatus:
    """Asks the model server behind an alias; versions are hidden behind the alias's name."""

    def __init__(self, live: Live, splits: LiveSplits, transport: Transport):
        self._live = live
        self._splits = splits
        self._transport = transport

    async def metadata(self, alias: str, key: Key) -> bytes:
        """The inputs and outputs of the version that answers most; `versions` are all that do.

        Raises:
            GatewayError: no such model, no version, or the server is away.
        """
        target, versions = self._versions(alias, key)
        said = orjson.loads(await self._ask(target, versions[0], ""))
        return orjson.dumps({**said, "name": alias, "versions": versions})

    async def ready(self, alias: str, key: Key) -> bytes:
        """Ready once every version that answers is. Raises as `metadata` does."""
        target, versions = self._versions(alias, key)
        for version in versions:
            await self._ask(target, version, "/ready")
        return orjson.dumps({"name": alias, "ready": True})

    def _versions(self, alias: str, key: Key) -> tuple[Target, list[str]]:
        target = self._live.current.routes.resolve(alias, key)
        if target.upstream.kind != "kserve":
            raise BadRequest(f"{alias!r} is no tabular model.", param="model", code="not_tabular")
        split = self._splits.current.get(alias)
        arms = sorted(split.arms if split else (), key=lambda arm: -arm.weight)
        versions = [arm.variant.adapter for arm in arms if arm.weight > 0 and arm.variant.adapter]
        versions = versions or [name for name in (target.settings.model,) if name]
        if not versions:
            raise NoVersion(alias)
        return target, versions

    async def _ask(self, target: Target, version: str, what: str) -> bytes:
        headers = {"authorization": f"Bearer {target.credential}"} if target.credential else {}
        url = f"{target.upstream.url.rstrip('/')}/models/{quote(version, safe='')}{what}"
        try:
            status, body = await self._transport.get(url, headers)
        except UpstreamFailure as error:
            raise ModelServerAway(
                f"The model server of {target.alias!r} cannot be reached; try again."
            ) from error
        if status != 200:
            raise ModelServerAway(
                f"The model server does not have {version!r} ready; try again.",
                code="version_not_loaded",
            )
        return body
