"""A worker's splits in memory: found without the database, kept up to date by the version counter.

With the database away the splits that are known stay in force; a request keeps the variant that it
began with.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gateway.database import Database, current_version
from gateway.key_ring import POLL_SECONDS
from gateway.splits import all_splits
from gateway.variants import Split, Variant

NEVER = -1
_log = logging.getLogger(__name__)


class LiveSplits:
    """Alias to split, for one worker. `load` it before it is asked."""

    def __init__(self, database: Database):
        self._database = database
        self._splits: Mapping[str, Split] = {}
        self._seen = NEVER
        self._healthy = True

    def find(self, alias: str) -> Split | None:
        """The split of `alias`, if there is one; reads no database."""
        return self._splits.get(alias)

    def load(self) -> None:
        """Read all splits if anything was changed since the last time.

        Raises:
            SQLAlchemyError: the database cannot be read; the splits are as they were.
        """
        with self._database.session() as session:
            version = current_version(session)
            if version != self._seen:
                self._splits = all_splits(session)
                self._seen = version

    async def refresh_forever(self) -> None:
        """Keep up with the database until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.load)
                self._healthy = True
            except (SQLAlchemyError, ValueError, TypeError, KeyError) as error:  # a damaged row too
                if self._healthy:
                    _log.warning("splits stay as they were: they cannot be read: %s", error)
                self._healthy = False
            await asyncio.sleep(POLL_SECONDS)


def with_parameters(body: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """A request's body under a variant. Its parameters win over the caller's: else an arm would
    not be what it says it is."""
    return {**body, **variant.parameters} if variant.parameters else body
