"""A worker's keys in memory: found without the database, kept up to date by the version counter.

Invariants: one poll at a time, each a full step from one version to a later one, so a revoked key
is never put back. With the database away the known keys stay; who asks decides for how long
(`stale_seconds`) and must not call an unknown key invalid while the ring is not `healthy`.
"""

import asyncio
import hmac
import logging
import sys
import time
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gateway.database import Database, current_version
from gateway.key_tables import KeyRow, TeamRow
from gateway.keys import TOKEN, Key, TeamLimits, effective

POLL_SECONDS = 0.25
HEALTHY_SECONDS = 2.0
SERVE_STALE_SECONDS = 15 * 60
ROWS_AT_ONCE = 1000
NEVER = -1

Columns = tuple[Any, ...]

# One statement reads a key together with its team: they are of one moment.
COLUMNS: Select[*Columns] = select(
    KeyRow.digest,
    KeyRow.deleted_at,
    KeyRow.key_id,
    KeyRow.tenant,
    KeyRow.team_id,
    KeyRow.user_id,
    KeyRow.models,
    KeyRow.expires_at,
    KeyRow.blocked,
    KeyRow.details,
    KeyRow.bodies,
    KeyRow.unknown_fields,
    TeamRow.alias.label("team_alias"),
    TeamRow.models.label("team_models"),
    TeamRow.blocked.label("team_blocked"),
).outerjoin(TeamRow, KeyRow.team_id == TeamRow.team_id)

log = logging.getLogger(__name__)


class KeyRing:
    """Digest to key, for one worker. `load` it before it is asked."""

    def __init__(self, database: Database, digest_secret: bytes):
        self._database = database
        self._secret = digest_secret
        self._keys: dict[bytes, Key] = {}
        self._seen = NEVER
        self._good_at = float("-inf")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, token: str) -> Key | None:
        """The key with this plaintext, blocked and expired ones too; reads no database."""
        if TOKEN.fullmatch(token) is None:
            return None
        return self._keys.get(hmac.digest(self._secret, token.encode(), "sha256"))

    @property
    def version(self) -> int:
        """The number of the last change that was seen; who follows others' changes compares it."""
        return self._seen

    @property
    def stale_seconds(self) -> float:
        """Seconds since the database was last read with success; infinite before the first time."""
        return time.monotonic() - self._good_at

    @property
    def healthy(self) -> bool:
        """Whether an unknown key can be called invalid: the ring is up to date."""
        return self.stale_seconds < HEALTHY_SECONDS

    @property
    def servable(self) -> bool:
        """Whether known keys may still be served (at most 15 minutes without the database)."""
        return self.stale_seconds < SERVE_STALE_SECONDS

    def load(self) -> None:
        """Take in what changed since the last time; everything, the first time.

        Raises:
            SQLAlchemyError: the database cannot be read; the ring is as it was.
        """
        started = time.monotonic()
        with self._database.session() as session:
            version = current_version(session)
            if version < self._seen:  # the database was restored from an older copy
                self._seen = NEVER
            if version != self._seen:
                self._take_in(session, since=self._seen)
                self._seen = version
        self._good_at = started

    async def refresh_forever(self) -> None:
        """Keep up with the database until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.load)
            except (SQLAlchemyError, ValueError) as error:  # ValueError: a row that is damaged
                if self.healthy:
                    log.warning("keys: the state database cannot be read: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    def _take_in(self, session: Session, since: int) -> None:
        if since == NEVER:
            fresh: dict[bytes, Key] = {}
            self._put(session, COLUMNS.where(KeyRow.deleted_at.is_(None)), fresh)
            self._keys = fresh
            return
        self._put(session, COLUMNS.where(KeyRow.version > since), self._keys)
        self._put(session, COLUMNS.where(TeamRow.version > since), self._keys)

    def _put(self, session: Session, query: Select[*Columns], keys: dict[bytes, Key]) -> None:
        shared: dict[frozenset[str], frozenset[str]] = {}
        for row in session.execute(query.execution_options(yield_per=ROWS_AT_ONCE)):
            name = bytes.fromhex(row.digest)
            if row.deleted_at is not None:
                keys.pop(name, None)
                continue
            try:
                key = effective(row, _team(row))
            except ValueError as error:  # one damaged row must not keep the others from changing
                log.error("key %s is damaged and not served: %s", row.key_id, error)
                keys.pop(name, None)
                continue
            # Most keys have one of a few sets of models: they need not each hold a copy.
            models = shared.setdefault(key.models, key.models)
            keys[name] = replace(key, models=models, tenant=sys.intern(key.tenant))


def _team(row: Row[*Columns]) -> TeamLimits | None:
    if row.team_id is None:
        return None
    return TeamLimits(row.team_alias or row.team_id, row.team_models, row.team_blocked)
