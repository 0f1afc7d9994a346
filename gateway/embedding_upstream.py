"""Another server's POST /v1/embeddings as a source: asked only for what is not in the cache."""

import asyncio
import hashlib
from typing import Any

import aiohttp
import numpy as np
import orjson

from gateway.embedding_vector import Embedding
from gateway.errors import (
    UpstreamBroken,
    UpstreamFailure,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)

CALL_TEXTS = 256
CALLS_AT_ONCE = 4
TIMEOUT = aiohttp.ClientTimeout(total=120, connect=5)
CHARACTERS_PER_TOKEN = 4
CREDENTIAL_STATUSES = (401, 403)


class UpstreamModel:
    """One model of another server.

    Attributes:
        dimensions: length of its vectors.
        revision: stands for the server and its name for the model.
    """

    waiting = 0

    def __init__(self, *, url: str, model: str, api_key: str | None, dimensions: int) -> None:
        self.dimensions = dimensions
        self.revision = hashlib.sha256(f"{url}\0{model}".encode()).hexdigest()[:12]
        self._url = url.rstrip("/") + "/embeddings"
        self._model = model
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)

    async def embed(self, texts: list[str]) -> list[Embedding]:
        """The embeddings of the texts, in order; raises UpstreamFailure."""
        parts = [texts[start : start + CALL_TEXTS] for start in range(0, len(texts), CALL_TEXTS)]
        answers = await asyncio.gather(*(self._ask(part) for part in parts))
        return [embedding for answer in answers for embedding in answer]

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, texts: list[str]) -> list[Embedding]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=TIMEOUT, headers=self._headers)
        body = orjson.dumps({"model": self._model, "input": texts, "encoding_format": "float"})
        try:
            async with (
                self._calls,
                self._session.post(self._url, data=body, allow_redirects=False) as response,
            ):
                answer = await response.read()
                status, retry_after = response.status, response.headers.get("retry-after")
        except TimeoutError as error:
            raise UpstreamTimeout("The embedding upstream took too long.") from error
        except aiohttp.ClientError as error:
            raise UpstreamBroken("The embedding upstream cannot be reached.") from error
        if status != 200:
            raise _failure(status, answer, retry_after)
        return self._embeddings(answer, texts)

    def _embeddings(self, answer: bytes, texts: list[str]) -> list[Embedding]:
        try:
            parsed = orjson.loads(answer)
            data = sorted(parsed["data"], key=lambda item: int(item["index"]))
            vectors = [np.asarray(item["embedding"], "<f4") for item in data]
            total = int((parsed.get("usage") or {}).get("prompt_tokens") or estimate(texts))
            indexes = [int(item["index"]) for item in data]
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UpstreamBroken("The embedding upstream's answer is not OpenAI's.") from error
        if indexes != list(range(len(texts))):
            raise UpstreamBroken("The embedding upstream answered another number of texts.")
        for vector in vectors:
            if vector.shape != (self.dimensions,) or not np.isfinite(vector).all():
                raise UpstreamBroken(
                    f"The embedding upstream's vectors are not {self.dimensions} finite numbers; "
                    "is embeddings.models.<name>.dimensions right?"
                )
        tokens = shares(total, [len(text) for text in texts])
        return [Embedding(v.tobytes(), n) for v, n in zip(vectors, tokens, strict=True)]


def estimate(texts: list[str]) -> int:
    """Tokens of texts whose upstream does not say: a quarter of their characters, rounded up."""
    return -(-sum(len(text) for text in texts) // CHARACTERS_PER_TOKEN)


def shares(total: int, weights: list[int]) -> list[int]:
    """`total` split into whole numbers by weight; they add up to it.

    An upstream counts the tokens of a call, the cache wants them for each text: the length of the
    text decides. Sums over the texts of a call are exact.
    """
    whole = sum(weights)
    answer, given, seen = [], 0, 0
    for weight in weights:
        seen += weight
        upto = total * seen // whole if whole else 0
        answer.append(upto - given)
        given = upto
    return answer


def _failure(status: int, body: bytes, retry_after: str | None) -> UpstreamFailure:
    message, param, code = _explained(body)
    if status == 429:
        return UpstreamRateLimited(message, retry_after)
    if status in CREDENTIAL_STATUSES:
        return UpstreamBroken("The embedding upstream refused this installation's credential.")
    if 400 <= status < 500:
        return UpstreamRefused(status, message, param=param, code=code)
    return UpstreamBroken(f"The embedding upstream answered {status}.")


def _explained(body: bytes) -> tuple[str, str | None, str | None]:
    try:
        error: Any = orjson.loads(body)["error"]
        param, code = error.get("param"), error.get("code")
        return str(error["message"]), param and str(param), code and str(code)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "The embedding upstream refused the request.", None, None
