"""Answers an embedding request: from the cache, from a computation under way, or from a new one.

Every key that is being looked up or computed has one flight; a request that wants the same key
meanwhile waits for that flight. A flight belongs to no request: whoever goes away, the others
get their answer, and it is kept.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.embedding_cache import EmbeddingCache
from gateway.embedding_key import KeySpace
from gateway.embedding_request import CacheControl, EmbeddingRequest
from gateway.embedding_vector import Embedding, encode
from gateway.errors import BadRequest, GatewayError, ModelNotFound

log = logging.getLogger(__name__)


class Embedder(Protocol):
    """A source of embeddings: a model here, or another server."""

    dimensions: int
    revision: str

    async def embed(self, texts: list[str]) -> list[Embedding]:
        """The embeddings of normalized texts, in order; raises GatewayError."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """The embedding of one input, and whether the cache had it."""

    embedding: Embedding
    cached: bool


@dataclass(slots=True)
class ServiceCounts:
    """Inputs answered since the start, by where the embedding came from."""

    hits: int = 0
    misses: int = 0
    shared: int = 0
    computed: int = 0


@dataclass(slots=True)
class _Flight:
    """`keep_seconds` is the longest that a request waiting for it lets it be kept; 0 is not."""

    done: asyncio.Future[Found | GatewayError]
    keep_seconds: int


class EmbeddingService:
    """The models by their names, with one cache."""

    def __init__(
        self, models: Mapping[str, Embedder], cache: EmbeddingCache, *, ttl_seconds: int
    ) -> None:
        self.models = models
        self.counts = ServiceCounts()
        self._cache = cache
        self._ttl_seconds = ttl_seconds
        self._flights: dict[str, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: EmbeddingRequest, tenant: str) -> list[Found]:
        """One `Found` for each input, in order; raises GatewayError."""
        model = self.models.get(request.model)
        if model is None:
            raise ModelNotFound(request.model)
        dimensions = request.dimensions or model.dimensions
        if dimensions > model.dimensions:
            raise BadRequest(
                f"'dimensions' must be at most {model.dimensions} for {request.model}.",
                param="dimensions",
            )
        space = KeySpace(tenant, request.model, model.revision, dimensions)
        keys = space.keys(list(request.texts))
        flights = self._board(
            dict(zip(keys, request.texts, strict=True)), request.cache, model, dimensions
        )
        await asyncio.wait([flight.done for flight in flights.values()])
        found = []
        for key in keys:
            outcome = flights[key].done.result()
            if isinstance(outcome, GatewayError):
                raise outcome
            found.append(outcome)
        hits = sum(item.cached for item in found)
        self.counts.hits += hits
        self.counts.misses += len(found) - hits
        return found

    def _board(
        self, texts: dict[str, str], control: CacheControl, model: Embedder, dimensions: int
    ) -> dict[str, _Flight]:
        """A flight for each key: one that is under way, or a new one for all the others."""
        keep = 0 if control.no_store else min(control.ttl or self._ttl_seconds, self._ttl_seconds)
        loop = asyncio.get_running_loop()
        flights: dict[str, _Flight] = {}
        fresh: dict[str, str] = {}
        for key, text in texts.items():
            flight = None if control.no_cache else self._flights.get(key)
            if flight is None:
                flight = _Flight(loop.create_future(), keep)
                fresh[key] = text
            else:
                self.counts.shared += 1
                flight.keep_seconds = max(flight.keep_seconds, keep)
            flights[key] = flight
        if fresh:
            own = {key: flights[key] for key in fresh}
            if not control.no_cache:
                self._flights.update(own)
            look_up = not control.no_cache
            task = asyncio.create_task(self._fly(own, fresh, model, dimensions, look_up=look_up))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return flights

    async def _fly(
        self,
        flights: dict[str, _Flight],
        texts: dict[str, str],
        model: Embedder,
        dimensions: int,
        *,
        look_up: bool,
    ) -> None:
        outcome = GatewayError("The embeddings could not be computed.")
        try:
            found = await self._cache.read(list(flights), dimensions) if look_up else {}
            for key, embedding in found.items():
                flights[key].done.set_result(Found(embedding, cached=True))
            missing = [key for key in flights if key not in found]
            if missing:
                computed = await model.embed([texts[key] for key in missing])
                self._land(flights, missing, computed, dimensions)
        except GatewayError as error:
            outcome = error
        finally:
            for key, flight in flights.items():
                if not flight.done.done():
                    flight.done.set_result(outcome)
                if self._flights.get(key) is flight:
                    del self._flights[key]

    def _land(
        self,
        flights: dict[str, _Flight],
        keys: list[str],
        computed: list[Embedding],
        dimensions: int,
    ) -> None:
        now = int(time.time())
        rows = []
        for key, full in zip(keys, computed, strict=True):
            flight, embedding = flights[key], full.shortened(dimensions)
            flight.done.set_result(Found(embedding, cached=False))
            if flight.keep_seconds:
                rows.append((key, encode(embedding, now + flight.keep_seconds)))
        self.counts.computed += len(keys)
        self._cache.write_later(rows)

    async def close(self) -> None:
        """Keep what was computed, then let the models go."""
        await self._cache.close()
        for model in self.models.values():
            await model.close()
