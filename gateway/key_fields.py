"""What may be said of a key or a team, and the check that makes columns of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypedDict

import orjson

from gateway.database import now
from gateway.errors import BadRequest

DEFAULT_TENANT = "default"
NAME = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,126}[^\s\x00-\x1f\x7f])?")
DURATION = re.compile(r"([1-9][0-9]{0,8})(s|mo|m|h|d|w)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "mo": 30 * 86400}
LONGEST_SECONDS = 100 * 365 * 86400
MODELS_AT_MOST = 1000
METADATA_BYTES = 16 * 1024
EVERY_MODEL = frozenset({"*", "all-proxy-models", "all-team-models"})


class TeamFields(TypedDict, total=False):
    """Fields of a team; `models` empty is every model."""

    tenant: str | None
    alias: str | None
    models: Iterable[str]
    blocked: bool
    metadata: Mapping[str, Any] | None


class KeyFields(TypedDict, total=False):
    """Fields of a key.

    `models` empty is every model of the team, or every model. `duration` is a time from now, such
    as `30d` or `12h`; None is for ever. `bodies` says what the request log keeps of requests and
    responses, `unknown_fields` what becomes of body fields that the gateway does not know.
    """

    tenant: str | None
    team_id: str | None
    user_id: str | None
    alias: str | None
    models: Iterable[str]
    duration: str | None
    blocked: bool
    metadata: Mapping[str, Any] | None
    bodies: Literal["keep", "redact", "off"]
    unknown_fields: Literal["pass", "reject"]


def parse_duration(text: str, field: str = "duration") -> timedelta:
    """A span such as `45s`, `30m`, `12h`, `30d`, `2w`, `1mo` (30 days).

    Raises:
        BadRequest: not such a span, or more than 100 years.
    """
    match = DURATION.fullmatch(text)
    if match is None:
        raise BadRequest(f"{field}: expected a span such as 12h or 30d, got {text!r}", param=field)
    seconds = int(match[1]) * SECONDS[match[2]]
    if seconds > LONGEST_SECONDS:
        raise BadRequest(f"{field}: {text} is more than 100 years", param=field)
    return timedelta(seconds=seconds)


def columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check `fields` (KeyFields or TeamFields) and name them as the tables do.

    Raises:
        BadRequest: a value cannot be used; `param` names the field.
    """
    checked: dict[str, Any] = {}
    for field, value in fields.items():
        check = CHECKS.get(field)
        if check is None:
            raise BadRequest(f"{field}: no such field", param=field)
        column, clean = check(field, value)
        checked[column] = clean
    return checked


def name(field: str, value: Any) -> tuple[str, Any]:
    """1 to 128 printable characters without space at the ends, or None."""
    if value is not None and not (isinstance(value, str) and NAME.fullmatch(value)):
        raise BadRequest(
            f"{field}: expected 1 to 128 printable characters, no space at the ends", param=field
        )
    return field, value


def _models(field: str, value: Any) -> tuple[str, Any]:
    listed = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if listed is None or len(listed) > MODELS_AT_MOST:
        raise BadRequest(f"{field}: expected a list of at most 1000 model names", param=field)
    for item in listed:
        if item is None:
            raise BadRequest(f"{field}: a model's name cannot be null", param=field)
        name(field, item)
    every = bool(EVERY_MODEL.intersection(listed))
    return field, [] if every else sorted(set(listed))


def _metadata(field: str, value: Any) -> tuple[str, Any]:
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise BadRequest(f"{field}: expected an object", param=field)
    try:
        encoded = orjson.dumps(dict(value))
    except TypeError as error:
        raise BadRequest(f"{field}: {error}", param=field) from error
    if len(encoded) > METADATA_BYTES or rb"\u0000" in encoded:
        raise BadRequest(f"{field}: at most 16 KiB of JSON without NUL characters", param=field)
    return "details", orjson.loads(encoded)


def _flag(field: str, value: Any) -> tuple[str, Any]:
    if not isinstance(value, bool):
        raise BadRequest(f"{field}: expected true or false", param=field)
    return field, value


def _duration(field: str, value: Any) -> tuple[str, Any]:
    if value is None:
        return "expires_at", None
    if not isinstance(value, str):
        raise BadRequest(f"{field}: expected a span such as 12h or 30d", param=field)
    return "expires_at", now() + parse_duration(value, field)


def _one_of(*allowed: str) -> Callable[[str, Any], tuple[str, Any]]:
    def check(field: str, value: Any) -> tuple[str, Any]:
        if value not in allowed:
            raise BadRequest(f"{field}: expected one of {', '.join(allowed)}", param=field)
        return field, value

    return check


CHECKS: Mapping[str, Callable[[str, Any], tuple[str, Any]]] = {
    "tenant": name,
    "team_id": name,
    "user_id": name,
    "alias": name,
    "models": _models,
    "duration": _duration,
    "blocked": _flag,
    "metadata": _metadata,
    "bodies": _one_of("keep", "redact", "off"),
    "unknown_fields": _one_of("pass", "reject"),
}
