"""A worker's splits in memory: found without the database, renewed when the version counter moves.

With the database away the known splits stay in force. A split is replaced as a whole and never
changed: a request keeps the one that it found.
"""

import logging
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.database import Database, current_version
from gateway.follower import follow_forever
from gateway.key_ring import NEVER, KeyRing
from gateway.live import Live, Snapshot
from gateway.splits import SplitRow, find_split
from gateway.variants import Split

_log = logging.getLogger(__name__)


class LiveSplits:
    """Alias to split, for one worker. `load` it before it is asked.

    Attributes:
        current: every split by its alias; replaced as a whole.
    """

    def __init__(self, database: Database):
        self.current: Mapping[str, Split] = {}
        self._database = database
        self.seen = NEVER
        self._versions: Mapping[str, int] = {}  # of the rows, by alias
        self._checked: tuple[Mapping[str, Split] | None, Snapshot | None] = (None, None)

    def load(self) -> None:
        """Read the splits that changed since the last time; all of them, the first time.

        Raises:
            SQLAlchemyError: the database cannot be read; the known splits stay.
        """
        with self._database.session() as session:
            version = current_version(session)
            if version < self.seen:  # the database was restored from an older copy
                self._versions = {}
            fresh, versions = self._read(session)
        if fresh != self.current:
            self.current = fresh
        self.seen, self._versions = version, versions

    async def follow_forever(self, ring: KeyRing, live: Live) -> None:
        """Keep up with what the ring sees until cancelled; say which targets are missing."""
        await follow_forever(self, ring, "splits", lambda: self.check(live.current))

    def check(self, snapshot: Snapshot) -> None:
        """Log the targets that the configuration lacks, once for each change of either."""
        splits = self.current
        if splits is self._checked[0] and snapshot is self._checked[1]:
            return
        self._checked = (splits, snapshot)
        for alias, split in splits.items():
            for arm in split.arms:
                if not snapshot.routes.can_answer(arm.variant):
                    _log.error(
                        "split of %s: variant %s: target %s is not a model of configuration %s; "
                        "its requests get 503 until the model is there or the split is changed",
                        alias, arm.variant.name, arm.variant.target, snapshot.config_hash,
                    )  # fmt: skip

    def _read(self, session: Session) -> tuple[dict[str, Split], dict[str, int]]:
        fresh, versions = {}, {}
        for alias, version in session.execute(select(SplitRow.alias, SplitRow.version)).all():
            versions[alias] = version
            split = self.current.get(alias)
            if version != self._versions.get(alias):
                try:
                    split = find_split(session, alias)
                except ValueError as error:  # it must not keep the others from changing
                    _log.error("split of %s: %s; it stays as it was known", alias, error)
            if split is not None:
                fresh[alias] = split
        return fresh, versions
