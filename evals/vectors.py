"""Embeddings of texts through the gateway's own endpoint: metered, logged, and cached there.

A text that was embedded lately costs a look-up; so reference and window take the same rows each
time as long as they can.
"""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

BATCH = 64
AT_ONCE = 2  # calls; the embedding server computes one batch after the other anyway
CHARACTERS = 1_500  # of a text; the model reads some 256 tokens


class VectorsUnavailable(RuntimeError):
    """The gateway does not embed the texts; the message says why."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """Who embeds.

    Attributes:
        url: the gateway, up to and with `/v1`.
        model: alias of the embedding model.
        timeout_seconds: for one batch.
    """

    url: str
    model: str
    api_key: str = field(repr=False)
    timeout_seconds: float = 120

    def embed(self, texts: Sequence[str]) -> Any:
        """Their vectors, one row a text, in order. Raises VectorsUnavailable."""
        import numpy as np

        distinct = list(dict.fromkeys(text[:CHARACTERS] for text in texts))
        batches = [distinct[start : start + BATCH] for start in range(0, len(distinct), BATCH)]
        vectors = asyncio.run(self._embed(batches))
        sizes = {len(vector) for vector in vectors}
        if len(sizes) > 1 or 0 in sizes or not all(np.isfinite(one).all() for one in vectors):
            said = f"sizes {sorted(sizes)}" if sizes != {0} else "empty"
            raise VectorsUnavailable(f"{self.url}/embeddings: not numbers of one size: {said}")
        found = dict(zip(distinct, vectors, strict=True))
        return np.array([found[text[:CHARACTERS]] for text in texts], dtype="float32")

    async def _embed(self, batches: list[list[str]]) -> list[Any]:
        limit = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(
            headers={
                "authorization": f"Bearer {self.api_key}",
                "content-type": "application/json",
            },
            timeout=aiohttp.ClientTimeout(total=self.timeout_seconds),
        ) as session:

            async def ask(batch: list[str]) -> list[Any]:
                async with limit:
                    return await self._ask(session, batch)

            try:
                parts = await asyncio.gather(*(ask(batch) for batch in batches))
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                said = str(error) or type(error).__name__
                raise VectorsUnavailable(f"{self.url}/embeddings: {said}") from error
        return [vector for part in parts for vector in part]

    async def _ask(self, session: aiohttp.ClientSession, texts: list[str]) -> list[Any]:
        import numpy as np

        body = {"model": self.model, "input": texts, "encoding_format": "base64"}
        address = f"{self.url.rstrip('/')}/embeddings"
        async with session.post(address, data=orjson.dumps(body), allow_redirects=False) as answer:
            said = await answer.read()
            if answer.status != 200:
                raise VectorsUnavailable(
                    f"{address} answers {answer.status}: {said[:300].decode(errors='replace')}"
                )
        try:
            rows = sorted(orjson.loads(said)["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(texts))):
                raise ValueError(f"{len(rows)} for {len(texts)} texts")
            return [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]
        except (ValueError, LookupError, TypeError) as error:
            raise VectorsUnavailable(f"{address}: not a list of embeddings: {error}") from error
