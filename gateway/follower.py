"""Keep what a worker holds of the state database up to date, by the version that its key ring saw.

The counter is polled once, by the ring; what is compared here is the number that it saw. With the
database away that number stands still, and what is known stays in force.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from gateway.key_ring import POLL_SECONDS, KeyRing

COMPARE_SECONDS = 0.1
_log = logging.getLogger(__name__)


class Held(Protocol):
    """A part of the state database in memory. `seen` is the version that it is of."""

    seen: int

    def load(self) -> None:
        """Read what changed since. Raises SQLAlchemyError; what is known stays then."""


async def follow_forever(
    held: Held, ring: KeyRing, what: str, each_round: Callable[[], None] = lambda: None
) -> None:
    """Renew `held` whenever the ring saw a change, until cancelled. `what` it is, for the log."""
    readable = True
    while True:
        if ring.version != held.seen:
            try:
                await asyncio.to_thread(held.load)
                readable = True
            except SQLAlchemyError as error:
                if readable:
                    _log.warning("%s stay as they were: the database is away: %s", what, error)
                readable = False
                await asyncio.sleep(POLL_SECONDS)
        each_round()
        await asyncio.sleep(COMPARE_SECONDS)
