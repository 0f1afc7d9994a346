"""Keys, teams and the audit trail on the admin API: LiteLLM's paths, thin handlers."""

import math
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from gateway import audit
from gateway.admin_wire import (
    AuditAnswer,
    AuditPage,
    AuditQuery,
    KeyAnswer,
    KeyGenerate,
    KeyInfo,
    KeyName,
    KeyNames,
    KeyPage,
    KeysDeleted,
    KeyUpdate,
    ListQuery,
    TeamAnswer,
    TeamInfo,
    TeamNames,
    TeamNew,
    TeamsDeleted,
    TeamUpdate,
    TeamUpdated,
    Text,
    key_answer,
    team_answer,
)
from gateway.errors import NotFound
from gateway.keys import KeyFilter, KeyStore

CHANGED_BY = "litellm-changed-by"
KEYS_SHOWN = 1000


def admin_router() -> APIRouter:
    """The table of routes."""
    router = APIRouter()
    for method, path, handler in (
        ("POST", "/key/generate", generate_key),
        ("GET", "/key/info", show_key),
        ("POST", "/key/update", update_key),
        ("POST", "/key/block", block_key),
        ("POST", "/key/unblock", unblock_key),
        ("POST", "/key/delete", delete_keys),
        ("GET", "/key/list", list_keys),
        ("POST", "/team/new", new_team),
        ("GET", "/team/info", show_team),
        ("POST", "/team/update", update_team),
        ("POST", "/team/delete", delete_teams),
        ("GET", "/team/list", list_teams),
        ("GET", "/audit", list_audit),
    ):
        router.add_api_route(path, handler, methods=[method])
    return router


def stored(request: Request) -> KeyStore:
    """The store of the application that serves `request`."""
    store: KeyStore = request.app.state.keys
    return store


def changed_by(request: Request) -> str:
    """Who is told to the audit trail: `admin`, with the name that the caller gives, if any."""
    given = request.headers.get(CHANGED_BY, "")
    return f"admin:{given[:128]}" if given and given.isprintable() else "admin"


Store = Annotated[KeyStore, Depends(stored)]
Actor = Annotated[str, Depends(changed_by)]


def generate_key(body: KeyGenerate, store: Store, actor: Actor) -> KeyAnswer:
    """Make a key; its plaintext is in this answer and nowhere else."""
    plaintext, key = store.generate(actor=actor, reason=body.reason, key=body.key, **body.fields())
    return key_answer(store.info(key.key_id), plaintext)


def show_key(key: str, store: Store) -> KeyInfo:
    """What is known of a key, named by its key_id, its digest or itself."""
    record = store.info(key)
    return KeyInfo(key=record.token, info=key_answer(record))


def update_key(body: KeyUpdate, store: Store, actor: Actor) -> KeyAnswer:
    """Change the given fields."""
    return key_answer(store.update(body.key, actor=actor, reason=body.reason, **body.fields()))


def block_key(body: KeyName, store: Store, actor: Actor) -> KeyAnswer:
    """Refuse the key until it is unblocked."""
    return key_answer(store.block(body.key, actor=actor, reason=body.reason))


def unblock_key(body: KeyName, store: Store, actor: Actor) -> KeyAnswer:
    """Take the key again."""
    return key_answer(store.unblock(body.key, actor=actor, reason=body.reason))


def delete_keys(body: KeyNames, store: Store, actor: Actor) -> KeysDeleted:
    """Refuse the keys for good. If one of them does not exist, none is deleted."""
    found = {record.key_id: record for record in map(store.info, body.keys)}
    if any(record.deleted_at for record in found.values()):
        raise NotFound("one of the keys was deleted before", param="keys", code="key_not_found")
    for key_id in found:
        store.delete(key_id, actor=actor, reason=body.reason)
    return KeysDeleted(deleted_keys=[record.token for record in found.values()])


def list_keys(store: Store, wanted: Annotated[ListQuery, Query()]) -> KeyPage:
    """Keys that are not deleted, newest first."""
    fitting = KeyFilter(
        tenant=wanted.tenant,
        team_id=wanted.team_id,
        user_id=wanted.user_id,
        alias=wanted.key_alias,
    )
    total = store.count(fitting)
    found = store.list(fitting, limit=wanted.size, offset=(wanted.page - 1) * wanted.size)
    whole = wanted.return_full_object
    return KeyPage(
        keys=[key_answer(key) for key in found] if whole else [key.token for key in found],
        total_count=total,
        current_page=wanted.page,
        total_pages=math.ceil(total / wanted.size),
    )


def new_team(body: TeamNew, store: Store, actor: Actor) -> TeamAnswer:
    """Make a team."""
    made = store.team_new(actor=actor, reason=body.reason, team_id=body.team_id, **body.fields())
    return team_answer(made)


def show_team(team_id: str, store: Store) -> TeamInfo:
    """A team and its keys (at most 1000)."""
    team = store.team_info(team_id)
    keys = store.list(KeyFilter(team_id=team.team_id), limit=KEYS_SHOWN)
    return TeamInfo(
        team_id=team.team_id,
        team_info=team_answer(team),
        keys=[key_answer(record) for record in keys],
    )


def update_team(body: TeamUpdate, store: Store, actor: Actor) -> TeamUpdated:
    """Change the given fields; the team's keys follow."""
    team = store.team_update(body.team_id, actor=actor, reason=body.reason, **body.fields())
    return TeamUpdated(team_id=team.team_id, data=team_answer(team))


def delete_teams(body: TeamNames, store: Store, actor: Actor) -> TeamsDeleted:
    """Delete teams, with every key of theirs. If one does not exist, none is deleted."""
    found = {team.team_id: team for team in map(store.team_info, body.team_ids)}
    if any(team.deleted_at for team in found.values()):
        raise NotFound("one of the teams was deleted before", param="team_ids")
    for team_id in found:
        store.team_delete(team_id, actor=actor, reason=body.reason)
    return TeamsDeleted(deleted_teams=list(found))


def list_teams(store: Store, tenant: Annotated[Text | None, Query()] = None) -> list[TeamAnswer]:
    """Teams that are not deleted, oldest first."""
    return [team_answer(team) for team in store.team_list(tenant=tenant)]


def list_audit(store: Store, wanted: Annotated[AuditQuery, Query()]) -> AuditPage:
    """The newest rows that fit."""
    with store.database.session() as session:
        found = audit.entries(session, audit.AuditFilter(**wanted.model_dump()))
    return AuditPage(rows=[AuditAnswer(**entry.as_dict()) for entry in found])
