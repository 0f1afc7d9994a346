"""Virtual keys: made, found, changed and deleted, each change with its row of the audit trail.

Invariants: the plaintext of a key is returned once, when it is made, and is stored nowhere; what
is stored is its HMAC-SHA256 under the installation's secret. A deleted key never comes back, nor
can its plaintext be adopted again.
"""

import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVarTuple, Unpack

import uuid_utils
from sqlalchemy import Row, Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from gateway.audit import Change, record
from gateway.database import Conflict, Database, next_version, now
from gateway.errors import BadRequest, NotFound
from gateway.key_fields import DEFAULT_TENANT, KeyFields, columns
from gateway.key_tables import KeyRow, TeamRow
from gateway.teams import TeamStore, find_team

PREFIX = "sk-"
RANDOM_BYTES = 32
TOKEN = re.compile(r"sk-[A-Za-z0-9_-]{32,125}")
DIGEST = re.compile(r"[0-9a-f]{64}")
KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Columns = TypeVarTuple("Columns")
EVERY_MODEL: frozenset[str] = frozenset()
NO_MODEL = frozenset({"\x00"})


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the request path uses it: its own fields with its team's taken into account.

    Attributes:
        team: the team's alias, else its id.
        models: names it may use; empty is every model. (A key whose models are none of its team's
            holds one name that no model can have.)
        expires_at: seconds since the epoch; None is never.
        blocked: it, or its team, is blocked.
        bodies: what the request log keeps of requests and responses.
        unknown_fields: what becomes of body fields that the gateway does not know.
    """

    key_id: str
    tenant: str
    team_id: str | None = None
    team: str | None = None
    user_id: str | None = None
    models: frozenset[str] = EVERY_MODEL
    expires_at: float | None = None
    blocked: bool = False
    bodies: Literal["keep", "redact", "off"] = "keep"
    unknown_fields: Literal["pass", "reject"] = "pass"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def usable(self, moment: float) -> bool:
        """Whether it is neither blocked nor expired at `moment` (seconds since the epoch)."""
        return not self.blocked and (self.expires_at is None or moment < self.expires_at)

    def may_use(self, model: str) -> bool:
        """Whether its holder may use `model`."""
        return not self.models or model in self.models


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is shown. `token` is its digest; times are ISO 8601."""

    key_id: str
    token: str
    hint: str
    tenant: str
    team_id: str | None
    user_id: str | None
    alias: str | None
    models: list[str]
    expires_at: str | None
    blocked: bool
    metadata: dict[str, Any]
    bodies: str
    unknown_fields: str
    created_at: str
    deleted_at: str | None


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys to list; None is any."""

    tenant: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    alias: str | None = None
    deleted: bool = field(default=False)


def digest(secret: bytes, token: str) -> str:
    """HMAC-SHA256 of a key under `secret`, in hex."""
    return hmac.digest(secret, token.encode(), "sha256").hex()


def new_token() -> str:
    """A fresh key: 256 random bits, url-safe."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


@dataclass(frozen=True, slots=True)
class TeamLimits:
    """What a team says about its keys; `name` is its alias, else its id."""

    name: str
    models: Sequence[str]
    blocked: bool

    @classmethod
    def of(cls, team: TeamRow | None) -> "TeamLimits | None":
        """Those of a row."""
        if team is None:
            return None
        return cls(team.alias or team.team_id, team.models, team.blocked)


def effective(row: "KeyRow | Row[*tuple[Any, ...]]", team: TeamLimits | None) -> Key:
    """The key in force: what `row` says (it has KeyRow's fields), within what its team may."""
    return Key(
        key_id=row.key_id,
        tenant=row.tenant,
        team_id=row.team_id,
        team=None if team is None else team.name,
        user_id=row.user_id,
        models=allowed_models(row.models, () if team is None else team.models),
        expires_at=None if row.expires_at is None else row.expires_at.timestamp(),
        blocked=row.blocked or (team is not None and team.blocked),
        bodies="off" if row.bodies == "off" else "redact" if row.bodies == "redact" else "keep",
        unknown_fields="reject" if row.unknown_fields == "reject" else "pass",
        metadata=row.details,
    )


def allowed_models(own: Sequence[str], team: Sequence[str]) -> frozenset[str]:
    """What a key may use: its own models, within its team's; an empty list does not restrict."""
    if not own or not team:
        return frozenset(own or team)
    return frozenset(own).intersection(team) or NO_MODEL


class KeyStore(TeamStore):
    """Keys and teams in the state database. Synchronous: call it from a thread.

    A key is named by its plaintext, its `key_id` or its digest. Every method raises NotFound
    for a key that does not exist, BadRequest for a field that cannot be used.
    """

    def __init__(self, database: Database, digest_secret: bytes):
        super().__init__(database)
        self._secret = digest_secret

    def generate(
        self,
        *,
        actor: str,
        reason: str | None = None,
        key: str | None = None,
        **fields: Unpack[KeyFields],
    ) -> tuple[str, Key]:
        """Make a key, or adopt the plaintext `key`; returns the plaintext, once, and the key.

        Raises:
            Conflict: the plaintext was used before, or the alias is taken.
        """
        token = new_token() if key is None else key
        if not TOKEN.fullmatch(token):
            raise BadRequest("key: expected sk- and 32 to 125 of A-Z a-z 0-9 _ -", param="key")
        values = columns(fields)
        row = KeyRow(
            key_id=str(uuid_utils.uuid7()),
            digest=digest(self._secret, token),
            hint=f"{PREFIX}…{token[-4:]}",
            created_at=now(),
            **{**NEW_KEY, **values},
        )
        try:
            with self.database.transaction() as session:
                row.version = next_version(session)
                team = _join_team(session, row)
                session.add(row)
                subject = f"key:{row.key_id}"
                change = Change(actor, "key.generate", subject, reason, after=row.state())
                record(session, change)
        except IntegrityError as error:
            raise _taken(values.get("alias")) from error
        return token, effective(row, TeamLimits.of(team))

    def info(self, key: str) -> KeyRecord:
        """What is known of a key, deleted ones included."""
        with self.database.session() as session:
            return _shown(self._find(session, key, deleted=True))

    def update(
        self,
        key: str,
        *,
        actor: str,
        reason: str | None = None,
        **fields: Unpack[KeyFields],
    ) -> KeyRecord:
        """Change the given fields. Raises Conflict if the alias is taken."""
        values = columns(fields)
        if "tenant" in values:
            raise BadRequest("tenant: a key cannot move to another tenant", param="tenant")
        return self._set(key, values, Change(actor, "key.update", "", reason))

    def block(self, key: str, *, actor: str, reason: str | None = None) -> KeyRecord:
        """Refuse the key from now on, until it is unblocked."""
        return self._set(key, {"blocked": True}, Change(actor, "key.block", "", reason))

    def unblock(self, key: str, *, actor: str, reason: str | None = None) -> KeyRecord:
        """Take the key again."""
        return self._set(key, {"blocked": False}, Change(actor, "key.unblock", "", reason))

    def delete(self, key: str, *, actor: str, reason: str | None = None) -> KeyRecord:
        """Refuse the key from now on, for good."""
        return self._set(key, {"deleted_at": now()}, Change(actor, "key.delete", "", reason))

    def list(
        self, wanted: KeyFilter | None = None, *, limit: int = 100, offset: int = 0
    ) -> Sequence[KeyRecord]:
        """Keys that fit, newest first."""
        query = _fitting(wanted or KeyFilter(), select(KeyRow))
        query = query.order_by(KeyRow.key_id.desc()).limit(limit).offset(offset)
        with self.database.session() as session:
            return tuple(_shown(row) for row in session.scalars(query))

    def count(self, wanted: KeyFilter | None = None) -> int:
        """How many keys fit."""
        query = _fitting(wanted or KeyFilter(), select(func.count()).select_from(KeyRow))
        with self.database.session() as session:
            return session.execute(query).scalar_one()

    def _set(self, key: str, values: dict[str, Any], change: Change) -> KeyRecord:
        try:
            with self.database.transaction() as session:
                version = next_version(session)
                row = self._find(session, key)
                before = row.state()
                for column, value in values.items():
                    setattr(row, column, value)
                if "team_id" in values:
                    _join_team(session, row)
                if row.state() != before:
                    row.version = version
                    done = replace(
                        change, subject=f"key:{row.key_id}", before=before, after=row.state()
                    )
                    record(session, done)
                    session.flush()
        except IntegrityError as error:
            raise _taken(values.get("alias")) from error
        return _shown(row)

    def _find(self, session: Session, key: str, *, deleted: bool = False) -> KeyRow:
        row = None
        if KEY_ID.fullmatch(key):
            row = session.get(KeyRow, key)
        elif DIGEST.fullmatch(key) or TOKEN.fullmatch(key):
            wanted = digest(self._secret, key) if key.startswith(PREFIX) else key
            row = session.scalars(select(KeyRow).where(KeyRow.digest == wanted)).one_or_none()
        if row is None or (row.deleted_at is not None and not deleted):
            raise NotFound(
                "there is no such key: name it by its key_id, its digest or the key itself",
                param="key",
                code="key_not_found",
            )
        return row


NEW_KEY: Mapping[str, Any] = {
    "tenant": None,
    "team_id": None,
    "user_id": None,
    "alias": None,
    "models": [],
    "expires_at": None,
    "blocked": False,
    "details": {},
    "bodies": "keep",
    "unknown_fields": "pass",
}


def _join_team(session: Session, row: KeyRow) -> TeamRow | None:
    """Find the team that `row` names (by id or alias) and take its tenant."""
    if row.team_id is None:
        row.tenant = row.tenant or DEFAULT_TENANT
        return None
    with session.no_autoflush:
        team = find_team(session, row.team_id)
    if row.tenant not in (None, team.tenant):
        raise BadRequest(
            f"team_id: the team belongs to tenant {team.tenant!r}, not {row.tenant!r}",
            param="team_id",
        )
    row.team_id, row.tenant = team.team_id, team.tenant
    return team


def _fitting(wanted: KeyFilter, query: Select[*Columns]) -> Select[*Columns]:
    for column in ("tenant", "team_id", "user_id", "alias"):
        value = getattr(wanted, column)
        if value is not None:
            query = query.where(getattr(KeyRow, column) == value)
    return query if wanted.deleted else query.where(KeyRow.deleted_at.is_(None))


def _shown(row: KeyRow) -> KeyRecord:
    return KeyRecord(token=row.digest, **row.state())


def _taken(alias: str | None) -> Conflict:
    return Conflict(
        f"this key was used before, or a key with the alias {alias!r} exists already", param="key"
    )
