"""Teams: what a group of keys may use at most, made and changed with an audit row each."""

from dataclasses import dataclass
from typing import Any, Unpack

import uuid_utils
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from gateway.audit import Change, record
from gateway.database import Conflict, Database, next_version, now
from gateway.errors import BadRequest, NotFound
from gateway.key_fields import DEFAULT_TENANT, TeamFields, columns, name
from gateway.key_tables import KeyRow, TeamRow


@dataclass(frozen=True, slots=True)
class TeamRecord:
    """A team as it is shown. Times are ISO 8601."""

    team_id: str
    tenant: str
    alias: str | None
    models: list[str]
    blocked: bool
    metadata: dict[str, Any]
    created_at: str
    deleted_at: str | None


class TeamStore:
    """Teams in the state database. Synchronous: call it from a thread."""

    def __init__(self, database: Database):
        self.database = database

    def team_new(
        self,
        *,
        actor: str,
        reason: str | None = None,
        team_id: str | None = None,
        **fields: Unpack[TeamFields],
    ) -> TeamRecord:
        """Make a team; `team_id` is chosen for you if you give none.

        Raises:
            BadRequest: a field cannot be used. Conflict: the id or the alias is taken.
        """
        values = columns(fields)
        name("team_id", team_id)
        row = TeamRow(
            team_id=team_id or str(uuid_utils.uuid7()),
            tenant=values.pop("tenant", None) or DEFAULT_TENANT,
            alias=values.pop("alias", None),
            models=values.pop("models", []),
            blocked=values.pop("blocked", False),
            details=values.pop("details", {}),
            created_at=now(),
        )
        try:
            with self.database.transaction() as session:
                row.version = next_version(session)
                session.add(row)
                record(session, _change("team.new", row, actor, reason, None))
        except IntegrityError as error:
            raise _taken(team_id, fields.get("alias")) from error
        return _shown(row)

    def team_info(self, team: str) -> TeamRecord:
        """The team with this id, or (if there is one alone) this alias; NotFound if there is none.

        A deleted team is found by its id.
        """
        with self.database.session() as session:
            return _shown(find_team(session, team, deleted=True))

    def team_update(
        self,
        team: str,
        *,
        actor: str,
        reason: str | None = None,
        **fields: Unpack[TeamFields],
    ) -> TeamRecord:
        """Change the given fields; its keys follow on every worker."""
        values = columns(fields)
        if "tenant" in values:
            raise BadRequest("tenant: a team cannot move to another tenant", param="tenant")
        try:
            with self.database.transaction() as session:
                version = next_version(session)
                row = find_team(session, team)
                before = row.state()
                for column, value in values.items():
                    setattr(row, column, value)
                if row.state() != before:
                    row.version = version
                    record(session, _change("team.update", row, actor, reason, before))
                    session.flush()
        except IntegrityError as error:
            raise _taken(team, fields.get("alias")) from error
        return _shown(row)

    def team_delete(self, team: str, *, actor: str, reason: str | None = None) -> TeamRecord:
        """Delete the team and every key of it, for good."""
        with self.database.transaction() as session:
            version = next_version(session)
            row = find_team(session, team)
            moment = now()
            keys = select(KeyRow).where(KeyRow.team_id == row.team_id, KeyRow.deleted_at.is_(None))
            for key in session.scalars(keys):
                before = key.state()
                key.deleted_at, key.version = moment, version
                record(
                    session,
                    Change(
                        actor=actor,
                        action="key.delete",
                        subject=f"key:{key.key_id}",
                        reason=reason or f"team {row.team_id} deleted",
                        before=before,
                        after=key.state(),
                    ),
                )
            before = row.state()
            row.deleted_at, row.version = moment, version
            record(session, _change("team.delete", row, actor, reason, before))
        return _shown(row)

    def team_list(self, *, tenant: str | None = None) -> list[TeamRecord]:
        """Teams that are not deleted, oldest first."""
        query = select(TeamRow).where(TeamRow.deleted_at.is_(None)).order_by(TeamRow.created_at)
        if tenant is not None:
            query = query.where(TeamRow.tenant == tenant)
        with self.database.session() as session:
            return [_shown(row) for row in session.scalars(query)]


def find_team(session: Session, team: str, *, deleted: bool = False) -> TeamRow:
    """The row of the team with this id, or alias. Raises NotFound, or Conflict (several fit)."""
    row = session.get(TeamRow, team) if len(team) <= 128 and "\x00" not in team else None
    if row is not None and (deleted or row.deleted_at is None):
        return row
    by_alias = select(TeamRow).where(TeamRow.alias == team, TeamRow.deleted_at.is_(None)).limit(2)
    rows = [] if "\x00" in team else list(session.scalars(by_alias))
    if len(rows) > 1:
        raise Conflict(f"several tenants have a team {team!r}: use its team_id", param="team_id")
    if not rows:
        raise NotFound(f"there is no team {team[:128]!r}", param="team_id", code="team_not_found")
    return rows[0]


def _change(
    action: str, row: TeamRow, actor: str, reason: str | None, before: dict[str, Any] | None
) -> Change:
    return Change(
        actor=actor,
        action=action,
        subject=f"team:{row.team_id}",
        reason=reason,
        before=before,
        after=row.state(),
    )


def _shown(row: TeamRow) -> TeamRecord:
    return TeamRecord(**row.state())


def _taken(team_id: str | None, alias: str | None) -> Conflict:
    return Conflict(
        f"a team with the id {team_id!r} or the alias {alias!r} exists already", param="team_id"
    )
