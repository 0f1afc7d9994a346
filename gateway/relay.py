"""A stream on its way from the upstream to the client, and into the log."""

import asyncio
import time
from contextlib import suppress

import orjson

from gateway.errors import GatewayError
from gateway.events import encode_event
from gateway.exchange import EVENTS
from gateway.inference import Inference
from gateway.ledger import Ledger
from gateway.records import Status, usd_text
from gateway.stream import DONE, HELD_BYTES, StreamWatch, require_end, stream_head
from gateway.upstream import Answer

END_SECONDS = 0.05
REDACTED_BYTES = 4 * 1024 * 1024
_CHUNKS = {"chat": "chat.completion.chunk", "completions": "text_completion"}


class Relay:
    """Forwards one stream. Memory is bounded: what the log needs of a long one goes to its part
    file, and a slow client pauses the upstream."""

    def __init__(self, work: Inference, answer: Answer, ledger: Ledger):
        self._work = work
        self._answer = answer
        self._ledger = ledger
        self._watch = StreamWatch()

    async def run(self) -> None:
        """Forward until the end, settle, then let the client know that it is the end."""
        work, watch = self._work, self._watch
        try:
            await self._forward()
            ended = time.perf_counter()
            require_end(watch)
            usage = watch.ending.usage or await self._ledger.estimate(work, watch.held_data())
        except BaseException as error:
            await self._settle_interrupted(error)
            raise
        work.record.finish_reason = watch.ending.finish_reason
        self._ledger.price(work, usage)
        work.spend(ended)
        gone = work.exchange.connection.closed
        status = Status.CLIENT_DISCONNECTED if gone else Status.OK
        self._ledger.settle(work, status, 499 if gone else 200, watch.held_data())
        await self._ledger.durable()
        await work.exchange.end(self._usage_event() + DONE)
        await self._read_to_end()

    async def _forward(self) -> None:
        work, watch, answer = self._work, self._watch, self._answer
        exchange = work.exchange
        # A stream that is redacted is held longer: what must go may be spread over many events.
        # Beyond that only its end is logged.
        redacted = work.key is not None and work.key.bodies == "redact"
        headers = work.headers()
        headers.append(EVENTS)
        await exchange.begin(200, headers)
        while not watch.done:
            chunk = await answer.next()
            if not chunk:
                return
            out = watch.feed(chunk)
            if out:
                if work.record.ttft_ms is None and b"data:" in out:  # comments are no answer
                    work.record.ttft_ms = work.elapsed_ms()
                    work.record.upstream_id = stream_head(out)
                if not exchange.connection.closed:
                    await exchange.write(out)
            if watch.held_bytes > (REDACTED_BYTES if redacted else HELD_BYTES):
                self._ledger.keep_part(work, watch.take_held())

    async def _read_to_end(self) -> None:
        """Give the upstream a moment to end its answer, so that its connection can be kept."""
        with suppress(TimeoutError, GatewayError):
            async with asyncio.timeout(END_SECONDS):
                while await self._answer.next():
                    pass

    async def _settle_interrupted(self, error: BaseException) -> None:
        """Book and log what came before a stream broke, or its client left."""
        work, watch = self._work, self._watch
        status, code, http_status = self._interruption(error)
        work.record.error_code = code
        try:
            ending = watch.ending
            work.record.finish_reason = ending.finish_reason
            if ending.usage is not None or watch.held:
                usage = ending.usage or await self._ledger.estimate(work, watch.held_data())
                self._ledger.price(work, usage)
        finally:
            self._ledger.settle(work, status, http_status, watch.held_data())

    def _interruption(self, error: BaseException) -> tuple[Status, str | None, int]:
        if isinstance(error, GatewayError):
            return error.log_status, error.code, 200
        if isinstance(error, asyncio.CancelledError) and self._work.exchange.connection.closed:
            return Status.CLIENT_DISCONNECTED, "client_disconnected", 499
        return Status.FAILED, "interrupted", 200

    def _usage_event(self) -> bytes:
        """The final usage event, with the cost, if the client asked for it."""
        work, record = self._work, self._work.record
        if not work.wants_usage():
            return b""
        event = self._watch.usage_event or {
            "id": record.upstream_id,
            "object": _CHUNKS.get(record.endpoint),
            "created": record.ts // 1_000_000,
            "model": record.model,
            "choices": [],
            "usage": {},
        }
        usage = dict(event["usage"])
        if record.usage_source == "estimated":
            usage["prompt_tokens"] = record.input_tokens
            usage["completion_tokens"] = record.output_tokens
            usage["total_tokens"] = (record.input_tokens or 0) + (record.output_tokens or 0)
        usage["cost"] = orjson.Fragment(usd_text(record.cost_nano_usd))
        return encode_event({**event, "usage": usage})
