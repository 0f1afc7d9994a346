"""Bodies of the admin API, with LiteLLM's names for what LiteLLM has too.

A field of LiteLLM's that this gateway does not have is refused by name if it asks for something,
and passed over if it is empty, as clients that send all their defaults do.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.key_fields import KeyFields, TeamFields
from gateway.keys import KeyRecord
from gateway.teams import TeamRecord

Text = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]
NEVER_EXPIRES = "-1"
LITELLM_ONLY = frozenset({
    "agent_id", "aliases", "allowed_cache_controls", "allowed_passthrough_routes", "allowed_routes",
    "admins", "auto_rotate", "budget_duration", "budget_id", "config",
    "default_key_generate_params", "enforced_params", "guardrails", "key_type", "max_budget",
    "max_parallel_requests", "members", "members_with_roles", "model_aliases", "model_max_budget",
    "model_rpm_limit", "model_tpm_limit", "object_permission", "organization_id", "permissions",
    "policies", "project_id", "prompts", "rotation_interval", "rpm_limit", "rpm_limit_type",
    "router_settings", "send_invite_email", "soft_budget", "spend", "tags", "team_member_budget",
    "team_member_key_duration", "team_member_permissions", "tpm_limit", "tpm_limit_type",
})  # fmt: skip


class Wire(BaseModel):
    """Base of the bodies: unknown fields are refused, types are not bent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str | None = Field(None, max_length=2000, pattern=r"^[^\x00]*$")

    @model_validator(mode="before")
    @classmethod
    def _without_litellm_only(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        kept = {name: value for name, value in body.items() if name not in LITELLM_ONLY}
        for name in sorted(LITELLM_ONLY.intersection(body)):
            if not _empty(body[name]):
                raise ValueError(f"{name} is not supported by this gateway")
        return kept


class KeyBody(Wire):
    """What may be said of a key. Null leaves a field as it is."""

    key_alias: str | None = None
    models: list[str] | None = None
    duration: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    metadata: dict[str, Any] | None = None
    blocked: bool | None = None
    bodies: Literal["keep", "redact", "off"] | None = None
    unknown_fields: Literal["pass", "reject"] | None = None

    def fields(self) -> KeyFields:
        """The fields that were given, by the store's names."""
        given = _given(self, {"key_alias": "alias"}, but=("key", "reason"))
        if given.get("duration") == NEVER_EXPIRES:
            given["duration"] = None
        return cast(KeyFields, given)


class KeyGenerate(KeyBody):
    """Body of `POST /key/generate`. `key` adopts a plaintext that exists already."""

    key: str | None = None
    tenant: str | None = None


class KeyUpdate(KeyBody):
    """Body of `POST /key/update`. `duration` counts from now; `-1` is for ever."""

    key: str


class KeyName(Wire):
    """Body of `POST /key/block` and `/key/unblock`."""

    key: str


class KeyNames(Wire):
    """Body of `POST /key/delete`."""

    keys: list[str] = Field(min_length=1, max_length=1000)


class KeyAnswer(BaseModel):
    """A key as the admin API shows it; `key` only when it was just made."""

    key: str | None = None
    key_id: str
    token: str
    key_name: str
    key_alias: str | None
    tenant: str
    team_id: str | None
    user_id: str | None
    models: list[str]
    expires: str | None
    blocked: bool
    metadata: dict[str, Any]
    bodies: str
    unknown_fields: str
    created_at: str
    deleted_at: str | None


class KeyInfo(BaseModel):
    """Answer of `GET /key/info`: the digest, and the rest."""

    key: str
    info: KeyAnswer


class KeyPage(BaseModel):
    """Answer of `GET /key/list`: digests, or whole keys with `return_full_object`."""

    keys: list[str] | list[KeyAnswer]
    total_count: int
    current_page: int
    total_pages: int


class ListQuery(BaseModel):
    """Query of `GET /key/list`."""

    model_config = ConfigDict(extra="forbid")

    page: int = Field(1, ge=1, le=1_000_000)
    size: int = Field(50, ge=1, le=1000)
    tenant: Text | None = None
    team_id: Text | None = None
    user_id: Text | None = None
    key_alias: Text | None = None
    return_full_object: bool = False


class KeysDeleted(BaseModel):
    """Answer of `POST /key/delete`."""

    deleted_keys: list[str]


class TeamBody(Wire):
    """What may be said of a team. Null leaves a field as it is."""

    team_alias: str | None = None
    models: list[str] | None = None
    metadata: dict[str, Any] | None = None
    blocked: bool | None = None

    def fields(self) -> TeamFields:
        """The fields that were given, by the store's names."""
        return cast(TeamFields, _given(self, {"team_alias": "alias"}, but=("team_id", "reason")))


class TeamNew(TeamBody):
    """Body of `POST /team/new`."""

    team_id: str | None = None
    tenant: str | None = None


class TeamUpdate(TeamBody):
    """Body of `POST /team/update`."""

    team_id: str


class TeamNames(Wire):
    """Body of `POST /team/delete`: the teams go with all their keys."""

    team_ids: list[str] = Field(min_length=1, max_length=1000)


class TeamAnswer(BaseModel):
    """A team as the admin API shows it."""

    team_id: str
    team_alias: str | None
    tenant: str
    models: list[str]
    blocked: bool
    metadata: dict[str, Any]
    created_at: str
    deleted_at: str | None


class TeamInfo(BaseModel):
    """Answer of `GET /team/info`."""

    team_id: str
    team_info: TeamAnswer
    keys: list[KeyAnswer]


class TeamUpdated(BaseModel):
    """Answer of `POST /team/update`."""

    team_id: str
    data: TeamAnswer


class TeamsDeleted(BaseModel):
    """Answer of `POST /team/delete`."""

    deleted_teams: list[str]


class AuditQuery(BaseModel):
    """Query of `GET /audit`; `before` is the id of the last row already seen."""

    model_config = ConfigDict(extra="forbid")

    subject: Text | None = None
    action: Text | None = None
    actor: Text | None = None
    before: Text | None = None
    limit: int = Field(50, ge=1, le=1000)


class AuditAnswer(BaseModel):
    """A row of the audit trail."""

    id: str
    ts: str
    actor: str
    action: str
    subject: str
    reason: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    evidence: dict[str, Any] | None


class AuditPage(BaseModel):
    """Answer of `GET /audit`, newest first; ask again with `before` = the last row's id."""

    rows: list[AuditAnswer]


def key_answer(record: KeyRecord, plaintext: str | None = None) -> KeyAnswer:
    """`record` in LiteLLM's names."""
    return KeyAnswer(
        key=plaintext,
        key_id=record.key_id,
        token=record.token,
        key_name=record.hint,
        key_alias=record.alias,
        tenant=record.tenant,
        team_id=record.team_id,
        user_id=record.user_id,
        models=record.models,
        expires=record.expires_at,
        blocked=record.blocked,
        metadata=record.metadata,
        bodies=record.bodies,
        unknown_fields=record.unknown_fields,
        created_at=record.created_at,
        deleted_at=record.deleted_at,
    )


def team_answer(record: TeamRecord) -> TeamAnswer:
    """`record` in LiteLLM's names."""
    return TeamAnswer(
        team_id=record.team_id,
        team_alias=record.alias,
        tenant=record.tenant,
        models=record.models,
        blocked=record.blocked,
        metadata=record.metadata,
        created_at=record.created_at,
        deleted_at=record.deleted_at,
    )


def _given(body: BaseModel, names: Mapping[str, str], but: tuple[str, ...]) -> dict[str, Any]:
    return {
        names.get(name, name): getattr(body, name)
        for name in body.model_fields_set
        if name not in but and getattr(body, name) is not None
    }


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")
