"""Computed embeddings in Feast's online store on Redis: looked up together, written behind.

Neither a lookup nor a write ever fails a request. When Redis does not answer in time the cache is
`away`: lookups find nothing at once, so that embeddings are computed, writes wait in a bounded
queue, and a probe that no request waits for finds out when Redis is back.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from feast import FeatureStore
from feast.infra.provider import get_provider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError, ResponseError

from gateway.embedding_vector import Embedding, NotAnEmbedding, decode

VIEW, JOIN_KEY, FEATURE = "embeddings", "embedding_key", "vector"
LOOKUP_KEYS = 512
WRITE_ROWS = 128
QUEUE_BYTES = 64 * 1024 * 1024
PROBE_SECONDS = (0.25, 0.5, 1.0, 2.0)
CLOSE_SECONDS = 3.0

log = logging.getLogger(__name__)
Row = tuple[str, bytes]


@dataclass(slots=True)
class CacheCounts:
    """What happened since the start. `dropped` rows were computed but are not kept."""

    lookups: int = 0
    lookup_failures: int = 0
    corrupt: int = 0
    written: int = 0
    dropped: int = 0
    write_failures: int = 0


@dataclass(slots=True)
class _Lookup:
    keys: list[str]
    dimensions: int
    done: asyncio.Future[dict[str, Embedding]]


@dataclass(slots=True)
class _Queue:
    rows: deque[Row] = field(default_factory=deque)
    size: int = 0

    def take(self, count: int) -> list[Row]:
        rows = [self.rows.popleft() for _ in range(min(count, len(self.rows)))]
        self.size -= sum(len(value) for _, value in rows)
        return rows

    def put_back(self, rows: list[Row]) -> None:
        self.rows.extendleft(reversed(rows))
        self.size += sum(len(value) for _, value in rows)


class EmbeddingCache:
    """The cache; `start` it on the event loop and `close` it there."""

    def __init__(self, store: FeatureStore) -> None:
        self.counts = CacheCounts()
        self.away = False
        self._store = store
        self._view = store.get_feature_view(VIEW)
        self._provider = get_provider(store.config)
        self._readers = ThreadPoolExecutor(1, "embedding-read")
        self._writers = ThreadPoolExecutor(1, "embedding-write")
        self._pending: deque[_Lookup] = deque()
        self._queue = _Queue()
        self._work = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = False
        self._writing = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to write what is queued. Call it on the event loop, before anything else."""
        self._loop = asyncio.get_running_loop()
        self._spawn(self._write_behind())

    async def close(self) -> None:
        """Write what is queued, for a few seconds at most; the rest counts as dropped."""
        for task in self._tasks:
            task.cancel()
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._queue.rows and not self.away and time.monotonic() < deadline:
            rows = self._queue.take(WRITE_ROWS)
            if await loop.run_in_executor(self._writers, self._write, rows):
                self._queue.put_back(rows)
        self.counts.dropped += len(self._queue.rows)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)

    @property
    def queued(self) -> int:
        """Rows that are not written yet."""
        return len(self._queue.rows) + self._writing

    async def read(self, keys: list[str], dimensions: int) -> dict[str, Embedding]:
        """What is kept under `keys`. Concurrent calls share one lookup in Redis."""
        if self.away or not keys:
            return {}
        lookup = _Lookup(keys, dimensions, asyncio.get_running_loop().create_future())
        self._pending.append(lookup)
        if not self._reading:
            self._reading = True
            self._spawn(self._read_pending())
        return await lookup.done

    def write_later(self, rows: Iterable[Row]) -> None:
        """Queue rows; over the queue's bound the oldest are dropped, and counted."""
        for row in rows:
            self._queue.rows.append(row)
            self._queue.size += len(row[1])
        while self._queue.size > QUEUE_BYTES:
            self.counts.dropped += len(self._queue.take(1))
        self._work.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_pending(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                lookups = self._next_lookups()
                try:
                    found = await loop.run_in_executor(self._readers, self._look_up, lookups)
                    for lookup, embeddings in zip(lookups, found, strict=True):
                        if not lookup.done.done():
                            lookup.done.set_result(embeddings)
                finally:
                    for lookup in lookups:
                        if not lookup.done.done():
                            lookup.done.set_result({})
        finally:
            self._reading = False

    def _next_lookups(self) -> list[_Lookup]:
        lookups = [self._pending.popleft()]
        total = len(lookups[0].keys)
        while self._pending and total + len(self._pending[0].keys) <= LOOKUP_KEYS:
            lookups.append(self._pending.popleft())
            total += len(lookups[-1].keys)
        return lookups

    def _look_up(self, lookups: list[_Lookup]) -> list[dict[str, Embedding]]:
        """In the reader's thread. Failures are counted; they find nothing."""
        nothing: list[dict[str, Embedding]] = [{} for _ in lookups]
        if self.away:
            return nothing
        self.counts.lookups += 1
        try:
            stored = self._stored([key for lookup in lookups for key in lookup.keys])
        except (RedisError, OSError, DecodeError) as error:
            self.counts.lookup_failures += 1
            self._failed(error)
            return nothing
        now = time.time()
        return [self._decoded(lookup, stored, now) for lookup in lookups]

    def _stored(self, keys: list[str]) -> dict[str, bytes]:
        # The provider's own read: half the time of FeatureStore.get_online_features, which builds
        # an answer of features that may come from several views.
        wanted = [_entity_key(key) for key in keys]
        rows = self._provider.online_read(self._store.config, self._view, wanted, [FEATURE])
        return {
            key: features[FEATURE].bytes_val
            for key, (_, features) in zip(keys, rows, strict=True)
            if features
        }

    def _decoded(
        self, lookup: _Lookup, stored: dict[str, bytes], now: float
    ) -> dict[str, Embedding]:
        found = {}
        for key in lookup.keys:
            value = stored.get(key)
            if not value:
                continue
            try:
                embedding = decode(value, dimensions=lookup.dimensions, now=now)
            except NotAnEmbedding as error:
                self.counts.corrupt += 1
                log.warning("stored embedding %s is computed again: %s", key, error)
                continue
            if embedding is not None:
                found[key] = embedding
        return found

    async def _write_behind(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            if self.away or not self._queue.rows:
                self._work.clear()
                continue
            rows = self._queue.take(WRITE_ROWS)
            self._writing = len(rows)
            again = await loop.run_in_executor(self._writers, self._write, rows)
            self._writing = 0
            if again:
                self._queue.put_back(rows)

    def _write(self, rows: list[Row]) -> bool:
        """In the writer's thread; says whether to try these rows again later."""
        now = datetime.now(UTC)
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
            (_entity_key(key), {FEATURE: Value(bytes_val=value)}, now, None) for key, value in rows
        ]
        try:
            self._provider.online_write_batch(self._store.config, self._view, data, None)
        except ResponseError as error:  # Redis answers, and refuses: out of memory, read-only
            self.counts.write_failures += 1
            self.counts.dropped += len(rows)
            log.warning("%d embeddings are not kept: Redis says %s", len(rows), error)
            return False
        except (RedisError, OSError) as error:
            self.counts.write_failures += 1
            self._failed(error)
            return True
        self.counts.written += len(rows)
        return False

    def _failed(self, error: Exception) -> None:
        """In a worker's thread: Redis did not answer (or not with what was written there)."""
        if isinstance(error, ResponseError | DecodeError):
            log.warning("lookup failed, embeddings are computed: %s", error)
            return
        if not self.away and self._loop is not None:
            self.away = True
            log.warning("Redis is away, embeddings are computed: %s", error)
            self._loop.call_soon_threadsafe(self._spawn, self._probe())

    async def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        waits = deque(PROBE_SECONDS)
        while self.away:
            await asyncio.sleep(waits.popleft() if len(waits) > 1 else waits[0])
            if await loop.run_in_executor(self._readers, self._answers):
                self.away = False
                self._work.set()
                log.warning("Redis is back, %d embeddings wait to be written", self.queued)

    def _answers(self) -> bool:
        try:
            self._stored(["probe"])
        except (RedisError, OSError):
            return False
        return True


def _entity_key(key: str) -> EntityKey:
    return EntityKey(join_keys=[JOIN_KEY], entity_values=[Value(string_val=key)])
