"""What every logged endpoint does around its own path, whatever it is asked.

A request is settled once: its record is in the spool and its metrics are counted, also when it
fails, when its client goes away, and when the gateway is shut down.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import uuid_utils

from gateway import wire
from gateway.auth import authenticate
from gateway.errors import GatewayError, Unavailable
from gateway.exchange import Disconnected, Exchange, Receive, Scope, Send
from gateway.inference import Inference
from gateway.key_ring import KeyRing
from gateway.ledger import Ledger
from gateway.live import Live
from gateway.live_prompts import LivePrompts
from gateway.live_splits import LiveSplits
from gateway.records import RequestRecord, Status
from gateway.routing import Target
from gateway.spool import SpoolUnavailable
from gateway.upstream import Transport
from gateway.variants import Split, unit_of

SHUTDOWN = Unavailable("The gateway is shutting down; send the request again.", code="shutdown")
OFF_LOOP_BYTES = 256 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """What the request path works with; made once per worker."""

    live: Live
    ring: KeyRing
    splits: LiveSplits
    prompts: LivePrompts
    transport: Transport
    ledger: Ledger
    salt_secret: bytes


class LoggedEndpoint(ABC):
    """An endpoint as an ASGI callable; `name` is what the log and the metrics call it."""

    def __init__(self, name: str, services: Services):
        self.name = name
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = Inference(
            Exchange(scope, receive, send),
            self.services.live.current,
            RequestRecord(
                request_id=str(uuid_utils.uuid7()),
                ts=time.time_ns() // 1000,
                endpoint=self.name,
            ),
        )
        ledger = self.services.ledger
        ledger.in_flight += 1
        try:
            await self.serve(work)
        except GatewayError as error:
            await self._fail(work, error)
        except SpoolUnavailable as error:
            _log.error("%s", error)
            await self._fail(work, Unavailable("The request log takes no more; try later."))
        except Disconnected:
            await self._gone(work)
        except asyncio.CancelledError:
            await self._cancelled(work)
        except Exception:  # noqa: BLE001  a request's boundary: whatever it was, it is logged
            _log.exception("request %s failed", work.record.request_id)
            await self._fail(work, GatewayError("The gateway could not finish the request."))
        finally:
            ledger.in_flight -= 1
            work.exchange.connection.unwatch(work.on_close)

    @abstractmethod
    async def serve(self, work: Inference) -> None:
        """The path of one request, top to bottom."""

    def _admit(self, work: Inference) -> None:
        work.record.config_hash = work.snapshot.config_hash
        self.services.ledger.admit(work.snapshot.configuration.limits.in_flight)

    def _authenticate(self, work: Inference) -> None:
        key = authenticate(work.exchange.headers.get(b"authorization"), self.services.ring)
        work.key = key
        record = work.record
        record.key_id, record.tenant, record.team = key.key_id, key.tenant, key.team
        record.user = key.user_id

    async def _read(self, work: Inference) -> None:
        work.raw = await work.exchange.read_body(work.snapshot.configuration.limits.body_bytes)

    async def _parse(self, work: Inference) -> None:
        started = time.perf_counter()
        limits = work.snapshot.configuration.limits
        if len(work.raw) > OFF_LOOP_BYTES:
            work.body = await asyncio.to_thread(wire.parse, work.raw, limits)
        else:
            work.body = wire.parse(work.raw, limits)
        work.spend(started)

    def _vary(self, work: Inference, asked: Target, split: Split) -> Target:
        """The target of the variant that this request's user, episode or key sticks to."""
        record = work.record
        assert record.tenant is not None and record.key_id is not None
        unit = unit_of(record.user, record.episode_id, record.key_id)
        variant = work.variant = split.choose(record.tenant, unit)
        if record.experiment is None:  # else the prompt's experiment counts this request
            record.variant, record.experiment = variant.name, split.experiment_id
        record.adapter = variant.adapter
        target = work.target = work.snapshot.routes.varied(asked, split, variant)
        return target

    def _begin(self, work: Inference) -> None:
        """Write the intent, then be ready for a client that goes away."""
        assert work.target is not None
        self.services.ledger.begin(work.record)
        if work.target.upstream.on_disconnect == "cancel":
            task = asyncio.current_task()
            assert task is not None
            work.on_close = work.exchange.connection.on_close = task.cancel

    async def _fail(self, work: Inference, error: GatewayError) -> None:
        if not work.settled:
            work.record.error_code = error.code
            status = 200 if work.exchange.begun else error.http_status
            try:
                self.services.ledger.settle(
                    work, error.log_status, status, work.exchange.body_of(error)
                )
            except SpoolUnavailable as failure:
                _log.error("request %s is not in the log: %s", work.record.request_id, failure)
        await work.exchange.fail(error, work.headers())

    async def _gone(self, work: Inference) -> None:
        """The client left before any answer came: nothing is known to have been used."""
        if work.settled:
            return
        work.record.error_code = "client_disconnected"
        try:
            self.services.ledger.settle(work, Status.CLIENT_DISCONNECTED, 499, b"")
        except SpoolUnavailable as failure:
            _log.error("request %s is not in the log: %s", work.record.request_id, failure)

    async def _cancelled(self, work: Inference) -> None:
        task = asyncio.current_task()
        if work.exchange.connection.closed and task is not None:
            task.uncancel()
            await self._gone(work)
            return
        await self._fail(work, SHUTDOWN)
        raise asyncio.CancelledError
