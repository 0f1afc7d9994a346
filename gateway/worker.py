"""A gateway worker: `python -m gateway.worker`. Any number of them share one port.

Each worker has its own spool segments, keys in memory and connections to the upstreams; what they
share is in the state database, the spool folder and the kernel's socket queue (SO_REUSEPORT).
"""

import asyncio
import gc
import logging
import resource
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from gateway.aiohttp_transport import AiohttpTransport
from gateway.app import DataPlane, Parts
from gateway.configuration import ConfigurationError, Listen
from gateway.database import open_database
from gateway.feedback import FeedbackStore
from gateway.follower import follow_forever
from gateway.http1_transport import Http1Transport
from gateway.key_ring import KeyRing
from gateway.ledger import Ledger
from gateway.live import DeclaredMetrics, Live
from gateway.live_prompts import LivePrompts
from gateway.live_splits import LiveSplits
from gateway.logged_endpoint import Services
from gateway.metrics import Metrics
from gateway.protocol import BoundedProtocol, bounded_protocol
from gateway.request_lookup import RequestLookup
from gateway.settings import Settings, SettingsError, load_settings
from gateway.spool import Spool, SpoolUnavailable

RELOAD_SECONDS = 0.5
METRICS_SECONDS = 0.25
SWEEP_TICKS = 10
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
CANCELLED_SECONDS = 1.0
_log = logging.getLogger(__name__)


class WorkerServer(uvicorn.Server):
    """uvicorn, with a look at slow connections once a second, and a note of the drain."""

    draining = False

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.sweep(now)
        stop = await super().on_tick(counter)
        self.draining = self.draining or stop
        return stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; a second signal ends it. Unlike uvicorn's own, the signal is not raised
        again at the end: it would kill the process before the last records are written."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def serve(settings: Settings) -> None:
    """Serve until a signal says stop; then finish what is under way."""
    live = Live(settings.config_path, settings.environ)
    configuration = live.current.configuration
    database = open_database(settings.database_url)
    ring = KeyRing(database, settings.key_digest_secret())
    ring.load()
    splits, prompts = LiveSplits(database), LivePrompts(database)
    splits.load()
    prompts.load()
    spool = Spool(settings.spool_dir, configuration.log)
    most = max((up.connections for up in configuration.upstreams.values()), default=1)
    transport = Http1Transport(secure=AiohttpTransport(most))
    metrics = Metrics()
    admin = configuration.admin
    parts = Parts(
        live=live,
        ring=ring,
        services=Services(
            live=live,
            ring=ring,
            splits=splits,
            prompts=prompts,
            transport=transport,
            ledger=Ledger(spool, metrics),
            salt_secret=settings.key_digest_secret(),
        ),
        feedback=FeedbackStore(database, DeclaredMetrics(live)),
        lookup=RequestLookup(
            f"http://{admin.host}:{admin.port}", settings.admin_credential(), transport
        ),
        ready=lambda: _not_ready(ring, spool, server),
    )
    server = WorkerServer(_uvicorn_config(DataPlane(parts), configuration.server.drain_seconds,
                                          bounded_protocol(configuration.limits)))  # fmt: skip
    listener = listen(configuration.server)
    gc.freeze()
    background = (
        ring.refresh_forever(), splits.follow_forever(ring, live),
        follow_forever(prompts, ring, "prompts"), spool.run(), _reload_forever(live),
        _publish_metrics(metrics, parts),
    )  # fmt: skip
    async with _running(server, *background):
        await server.serve(sockets=[listener])
        # Requests that the drain's end cancelled still have their last event and record to write.
        if server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks, timeout=CANCELLED_SECONDS)
    await transport.close()
    spool.close()
    metrics.flush()


def listen(address: Listen) -> socket.socket:
    """A listening socket that other workers can share."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"{address.host}:{address.port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _uvicorn_config(app: Any, drain: float, protocol: type[BoundedProtocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="uvloop",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(drain),
    )


def _not_ready(ring: KeyRing, spool: Spool, server: WorkerServer) -> str | None:
    if server.draining:
        return "shutting down"
    if not ring.servable:
        return "the state database has been away for too long"
    try:
        spool.ensure_room()
    except SpoolUnavailable as error:
        return str(error)
    return None


@asynccontextmanager
async def _running(
    server: WorkerServer, *coroutines: Coroutine[Any, Any, None]
) -> AsyncIterator[None]:
    """Background work. If any of it ends, the worker drains and ends: it would not be whole."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.error("background work ended", exc_info=task.exception())
            server.should_exit = True

    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _reload_forever(live: Live) -> None:
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        await asyncio.to_thread(live.reload_if_changed)


async def _publish_metrics(metrics: Metrics, parts: Parts) -> None:
    """Measure how late a timer fires (whatever blocks the event loop shows here), and publish
    the metrics."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + METRICS_SECONDS
        await asyncio.sleep(METRICS_SECONDS)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))
        metrics.in_flight.set(parts.services.ledger.in_flight)
        metrics.flush()


def main() -> int:
    """Run one worker; 1 and a message if it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        settings = load_settings()
        settings.metrics_dir.mkdir(parents=True, exist_ok=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except (ConfigurationError, SettingsError, SpoolUnavailable) as error:
        _log.error("the worker cannot start: %s", error)
        return 1
    except SQLAlchemyError as error:
        _log.error("the worker cannot read the state database (%s)", type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
