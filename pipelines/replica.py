"""One replica of vLLM: which adapters it serves, and loading and unloading one.

vLLM's answers are turned into sentences that say what to do; they were taken down from vLLM 0.32
(`docs/rollout.md`). An adapter of another base model is not always refused there: if its shapes are
smaller, vLLM fills the rest with zeros and answers with it. So it must be checked before it is
loaded (`rlhf.adapter.require_fit`).

Source: https://docs.vllm.ai/en/latest/features/lora.html
"""

import asyncio
import re
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import orjson

PROBE_SECONDS = 5.0
SEEN_EVERY = 0.05
SHOWN_CHARACTERS = 300
# The first that is found in vLLM's message says what it means; {0}, {1} are what it matched.
MEANINGS = (
    (
        r"rank (\d+) is greater than max_lora_rank (\d+)",
        "its rank {0} is above the engine's limit {1}: train with a lower rank, or start the "
        "engine with a higher --max-lora-rank (stack.engine.lora_rank)",
    ),
    (
        r"No adapter found",
        "the engine finds no adapter_config.json and weights there: is the folder whole, and does "
        "the engine see it under the same path?",
    ),
    (
        r"expected target modules|size of tensor|shape|dimension",
        "it does not fit the engine's model: it was trained on another base model",
    ),
    (
        r"deserializ|incomplete metadata|safetensors|JSON|Expecting",
        "its files are damaged or half-written; train or copy it again",
    ),
    (r"LoRA is not enabled", "the engine takes no adapters; start it with --enable-lora"),
    (
        r"conflicts with a served base model",
        "the engine serves its base model by that name; an adapter needs a name of its own",
    ),
)
NO_ENDPOINT = (
    "the engine does not load adapters while it runs; start it with --enable-lora and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
)


class ReplicaFailed(RuntimeError):
    """A replica is away, slow or refuses; the message says which of them and what to do."""


class Replica:
    """The replica at `url` (up to and with `/v1`), asked through `session`.

    Attributes:
        asked: adapters that it was asked to load and that it may have by now.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self.url = url
        self.asked: set[str] = set()
        self._session = session

    async def names(self, within: float = PROBE_SECONDS) -> dict[str, str | None]:
        """Every model that it answers for; an adapter with its path, a base model with None.

        Raises:
            ReplicaFailed: it does not say so in time (`PROBE_SECONDS` at most).
        """
        status, said = await self._ask("GET", "/models", None, min(within, PROBE_SECONDS))
        try:
            models = orjson.loads(said)["data"]
            return {one["id"]: one["root"] if one.get("parent") else None for one in models}
        except (ValueError, TypeError, KeyError) as error:
            raise ReplicaFailed(
                f"/models answers {status}: {shown(said)}; is it an engine, and is the key right?"
            ) from error

    async def ensure(self, adapter: str, path: Path, within: float) -> bool:
        """Load `adapter` unless it is there; True once it is seen, False if it was there already.

        Raises:
            ReplicaFailed: it is not there within `within` seconds, or never will be.
        """
        deadline = monotonic() + within
        served = await self.names(within)
        if adapter in served:
            self._require_same(adapter, served[adapter], path)
            return False
        await self._load(adapter, path, deadline - monotonic())
        while adapter not in await self.names(max(deadline - monotonic(), SEEN_EVERY)):
            if monotonic() >= deadline:
                raise ReplicaFailed(
                    f"it took {adapter} but does not list it in /models within {within:g} s"
                )
            await asyncio.sleep(SEEN_EVERY)
        return True

    async def unload(self, adapter: str, within: float = PROBE_SECONDS) -> bool:
        """Unload `adapter`; False if it was not there. Requests under way go on with it.

        Raises:
            ReplicaFailed: it does not answer in time, or refuses.
        """
        body = {"lora_name": adapter}
        status, said = await self._ask("POST", "/unload_lora_adapter", body, within)
        self.asked.discard(adapter)
        if status == 404 and b"cannot be found" in said:
            return False
        if status != 200:
            raise ReplicaFailed(_meaning(status, said))
        return True

    async def _load(self, adapter: str, path: Path, within: float) -> None:
        self.asked.add(adapter)
        body = {"lora_name": adapter, "lora_path": str(path)}
        status, said = await self._ask("POST", "/load_lora_adapter", body, within)
        if status == 400 and b"already been loaded" in said:
            self.asked.discard(adapter)  # somebody else's load came first
        elif status != 200:
            self.asked.discard(adapter)
            raise ReplicaFailed(_meaning(status, said))

    def _require_same(self, adapter: str, served: str | None, path: Path) -> None:
        if served != str(path):
            where = "is the name of its base model" if served is None else f"comes from {served}"
            raise ReplicaFailed(
                f"{adapter} {where} there, not from {path}; unload it first, or name it anew"
            )

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, within: float
    ) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=within)
        try:
            async with self._session.request(
                method, f"{self.url}{path}", json=body, timeout=timeout
            ) as answer:
                return answer.status, await answer.read()
        except TimeoutError as error:
            raise ReplicaFailed(f"{path} does not answer within {within:.1f} s") from error
        except aiohttp.ClientError as error:
            raise ReplicaFailed(f"is away: {error or type(error).__name__}") from error


def _meaning(status: int, said: bytes) -> str:
    """What a refusal means, with vLLM's own words."""
    try:
        answer = orjson.loads(said)
        error = answer.get("error", answer)  # a plain string where a proxy or a key check refuses
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        message = said.decode("utf-8", "replace")
    if message in ({"detail": "Not Found"}, "Not Found"):
        return NO_ENDPOINT
    if status in (401, 403):
        return f"it refuses our key ({status}); see the upstream's api_key_env"
    for pattern, meaning in MEANINGS:
        found = re.search(pattern, str(message))
        if found:
            return f"{meaning.format(*found.groups())} (it said: {shown(str(message).encode())})"
    return f"it answers {status}: {shown(str(message).encode())}"


def shown(said: bytes) -> str:
    """The beginning of what a server said."""
    text = said.decode("utf-8", "replace").strip()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
