"""One replica of a KServe model server: which versions are ready there, and loading and unloading
one.

The server loads a version by its name from its own folder of models, and says why it cannot.

Source: https://kserve.github.io/website/latest/modelserving/data_plane/v2_protocol/
"""

import asyncio
import re
from pathlib import Path
from urllib.parse import quote

import orjson

from pipelines.replica import PROBE_SECONDS, Replica, ReplicaFailed, shown

REASON = re.compile(r"error msg: (.*)", re.DOTALL)  # KServe puts its own words before it


class ModelServerReplica(Replica):
    """The replica at `url` (up to and with `/v2`); what it serves are versions, by their names."""

    async def names(self, within: float = PROBE_SECONDS) -> dict[str, str | None]:
        """Every version that is ready there, with its name for a path.

        Raises:
            ReplicaFailed: it does not say so in time (`PROBE_SECONDS` at most).
        """
        within = min(within, PROBE_SECONDS)
        status, said = await self._ask("GET", "/models", None, within)
        try:
            names = [str(name) for name in orjson.loads(said)["models"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ReplicaFailed(
                f"/models answers {status}: {shown(said)}; is it a KServe model server?"
            ) from error
        ready = await asyncio.gather(*(self._is_ready(name, within) for name in names))
        return {name: name for name, it_is in zip(names, ready, strict=True) if it_is}

    async def unload(self, adapter: str, within: float = PROBE_SECONDS) -> bool:
        """Unload a version; False if it was not there. Requests under way go on with it.

        Raises:
            ReplicaFailed: it does not answer in time, or refuses.
        """
        status, said = await self._ask("POST", f"{_path(adapter)}/unload", None, within)
        self.asked.discard(adapter)
        if status not in (200, 404):
            raise ReplicaFailed(_reason(status, said))
        return status == 200

    async def _load(self, adapter: str, path: Path, within: float) -> None:
        self.asked.add(adapter)
        status, said = await self._ask("POST", f"{_path(adapter)}/load", None, within)
        if status != 200:
            self.asked.discard(adapter)
            raise ReplicaFailed(_reason(status, said))

    def _require_same(self, adapter: str, served: str | None, path: Path) -> None:
        """A name stands for one content, wherever the server has it from."""

    async def _is_ready(self, name: str, within: float) -> bool:
        status, _ = await self._ask("GET", f"/models/{quote(name, safe='')}/ready", None, within)
        return status == 200


def _path(version: str) -> str:
    return f"/repository/models/{quote(version, safe='')}"


def _reason(status: int, said: bytes) -> str:
    """Why the server refuses, in its words."""
    try:
        message = str(orjson.loads(said)["error"])
    except (ValueError, TypeError, KeyError):
        return f"it answers {status}: {shown(said)}"
    found = REASON.search(message)
    return shown((found[1] if found else message).encode())
