"""Where a request is settled: priced, written to the spool, counted. Once, whatever happened."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gateway.errors import Unavailable
from gateway.inference import Inference
from gateway.metrics import Metrics
from gateway.records import RequestRecord, Status
from gateway.redaction import redact
from gateway.spool import Spool, SpoolUnavailable
from gateway.transcript import completed_response
from gateway.usage import BYTES_PER_TOKEN, Usage, answer_text, estimate

MILLISECONDS = 1000
UNROUTED = "none"
SAVING = frozenset(("hit", "partial"))


class Ledger:
    """The spool, the prices and the metrics of one worker, behind the few calls of the path."""

    def __init__(self, spool: Spool, metrics: Metrics):
        self.spool = spool
        self.in_flight = 0  # requests under way, kept by the path
        self._metrics = metrics
        # One thread: many clients that leave at once must not have as many transcripts in memory.
        self._counter = ThreadPoolExecutor(1, "token-count")
        self._sync = spool.log.durability == "sync"

    def admit(self, most: int) -> None:
        """Refuse, before anything is spent, what could not be logged or is one too many."""
        if self.in_flight > most:
            raise Unavailable(f"This worker already serves {most} requests; try again soon.")
        self.spool.ensure_room()

    def begin(self, record: RequestRecord) -> None:
        """Write the intent, before the upstream is called."""
        self.spool.begin(record)

    def keep_part(self, work: Inference, data: bytes) -> None:
        """Move bytes of a long answer out of memory, into its part file (if they are kept)."""
        if not self._keeps(work):
            work.dropped_bytes += len(answer_text(data).encode())
            return
        if work.part is None:
            work.part = self.spool.open_part(work.record.request_id)
            work.record.response_part = work.part.name
        work.part.append(data)

    async def estimate(self, work: Inference, data: bytes) -> Usage:
        """Count the tokens of an answer without usage, off the event loop."""
        assert work.target is not None
        part = self.spool.part_path(work.part.name) if work.part else None
        tokenizer = work.target.settings.tokenizer
        loop = asyncio.get_running_loop()
        counted = await loop.run_in_executor(
            self._counter, _estimate, work.body or {}, data, part, tokenizer
        )
        dropped = -(-work.dropped_bytes // BYTES_PER_TOKEN)
        return replace(counted, output_tokens=counted.output_tokens + dropped)

    def price(self, work: Inference, usage: Usage) -> None:
        """Put usage and its cost into the record."""
        assert work.target is not None
        record, rates = work.record, work.target.rates
        record.input_tokens, record.output_tokens = usage.input_tokens, usage.output_tokens
        record.cached_tokens = min(usage.cached_tokens, usage.input_tokens)
        record.reasoning_tokens = min(usage.reasoning_tokens, usage.output_tokens)
        record.usage_source = usage.source
        record.cost_nano_usd = rates.cost(usage)
        record.price_version = rates.version
        if record.cache in SAVING:
            record.saved_nano_usd = rates.saved(record.cached_tokens)

    def price_predictions(self, work: Inference, rows: int) -> None:
        """Put the cost of `rows` predictions into the record."""
        assert work.target is not None
        record, rates = work.record, work.target.rates
        record.usage_source = "counted"
        record.cost_nano_usd = rates.cost_of_predictions(rows)
        record.price_version = rates.version

    def settle(self, work: Inference, status: Status, http_status: int, response: bytes) -> None:
        """Write the final record and count it. Never waits, so nothing can come between."""
        if work.settled:
            return
        record = work.record
        record.status, record.http_status = status, http_status
        record.latency_ms = work.elapsed_ms()
        record.overhead_ms = round(work.own_seconds * MILLISECONDS, 3)
        if status is not Status.REJECTED or self._has_room():
            self._log(work, response)
        work.settled = True
        target = work.target
        alias, name = (target.alias, target.upstream_name) if target else (UNROUTED, UNROUTED)
        self._metrics.observe(record, alias, name)

    def _has_room(self) -> bool:
        """What was refused does not make a full spool fuller; it is counted only."""
        try:
            self.spool.ensure_room()
        except SpoolUnavailable:
            return False
        return True

    def _log(self, work: Inference, response: bytes) -> None:
        part, work.part = work.part, None
        if part is not None:
            try:
                part.append(response)
            finally:
                part.close()
            response = b""
        self.spool.finish(work.record, *self._bodies(work, response))

    async def durable(self) -> None:
        """With `durability: sync`, return when what was settled is on the disk."""
        if self._sync:
            await self.spool.synced()

    def _bodies(self, work: Inference, response: bytes) -> tuple[bytes, bytes]:
        keep = work.key.bodies if work.key is not None else "off"
        if keep == "off" or not self.spool.log.bodies:
            work.record.contexts = None
            return b"", b""
        if keep == "redact":
            work.record.contexts = None
            return redact(work.raw), redact(completed_response(response))
        return work.raw, response

    def _keeps(self, work: Inference) -> bool:
        return self.spool.log.bodies and work.key is not None and work.key.bodies == "keep"


def _estimate(
    body: dict[str, object], data: bytes, part: Path | None, tokenizer: Path | None
) -> Usage:
    text = (answer_text(part.read_bytes()) if part else "") + answer_text(data)
    return estimate(body, text, tokenizer)
