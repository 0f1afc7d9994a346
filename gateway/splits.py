"""Splits in the state database. Who writes one takes a number of the version counter, so that
workers see it within a poll; who may write one, and the audit row, is the caller's business.

Invariant: what `put_split` took, a worker can carry out: a name fits a response header, a salt is
hex, parameters fit a request's body. Whether a target is configured is seen where it is asked.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from gateway import wire
from gateway.configuration import WILDCARD, Limits
from gateway.database import Base, JsonText, next_version
from gateway.errors import BadRequest
from gateway.variants import Arm, Split, Variant

ALIAS_CHARACTERS = 128
# What makes a request the caller's own; a variant is another answer to the same request.
CALLERS = frozenset(("model", "messages", "prompt", "input", "user", "stream", "stream_options"))


class SplitRow(Base):
    """The split of one alias; none: the alias's configured model answers everybody."""

    __tablename__ = "split"

    alias: Mapped[str] = mapped_column(String(ALIAS_CHARACTERS), primary_key=True)
    experiment_id: Mapped[str | None] = mapped_column(String(36))
    salt: Mapped[str] = mapped_column(String(64))
    arms: Mapped[list[dict[str, Any]]] = mapped_column(JsonText)
    version: Mapped[int] = mapped_column(BigInteger)


def find_split(session: Session, alias: str) -> Split | None:
    """The split of `alias`, if there is one."""
    row = session.get(SplitRow, alias)
    return None if row is None else split_of(row)


def put_split(session: Session, split: Split) -> None:
    """Replace the split of an alias, inside the caller's transaction.

    Raises:
        BadRequest: no arm, two arms of one name, a weight below zero or no weight above it, a salt
            that is not hex, a name that fits no header, or a parameter that no variant may set.
    """
    check_split(split)
    version = next_version(session)  # first: it holds back whoever writes the same split now
    row = session.get(SplitRow, split.alias) or SplitRow(alias=split.alias)
    row.experiment_id, row.salt = split.experiment_id, split.salt
    row.arms = split.as_dict()["arms"]
    row.version = version
    session.add(row)


def drop_split(session: Session, alias: str) -> None:
    """Take the split of an alias away, inside the caller's transaction; none is fine."""
    next_version(session)
    row = session.get(SplitRow, alias)
    if row is not None:
        session.delete(row)


def all_splits(session: Session) -> Mapping[str, Split]:
    """Every split by its alias."""
    return {row.alias: split_of(row) for row in session.scalars(select(SplitRow))}


def split_of(row: SplitRow) -> Split:
    """The record in a row.

    Raises:
        ValueError: the row is damaged: no split was ever written so.
    """
    try:
        arms = tuple(Arm(Variant(**arm["variant"]), arm["weight"]) for arm in row.arms)
        split = Split(row.alias, arms, row.experiment_id, row.salt)
        check_split(split)
    except (BadRequest, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"split of {row.alias} is damaged: {error}") from error
    return split


def check_split(split: Split) -> None:
    """Refuse what no worker could carry out; raises BadRequest, as `put_split` says."""
    where = f"split of {split.alias[:ALIAS_CHARACTERS]}"
    if not _fits(split.alias) or len(split.alias) > ALIAS_CHARACTERS or split.alias == WILDCARD:
        raise BadRequest(
            f"{where}: an alias has 1 to {ALIAS_CHARACTERS} printable characters, and is not '*'",
            param="alias",
        )
    names = [arm.variant.name for arm in split.arms]
    if not names or len(set(names)) != len(names):
        raise BadRequest(f"{where}: every arm needs a name of its own", param="arms")
    weights = [arm.weight for arm in split.arms]
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise BadRequest(
            f"{where}: weights {weights}: none below 0, one at least above", param="weight"
        )
    _check_salt(where, split.salt)
    for arm in split.arms:
        _check_variant(f"{where}: {arm.variant.name}", arm.variant)
        _check_kind(f"{where}: {arm.variant.name}", split, arm.variant)


def _check_salt(where: str, salt: str) -> None:
    try:
        empty = not bytes.fromhex(salt)
    except ValueError:
        empty = True
    if empty:
        raise BadRequest(f"{where}: salt: pairs of hex digits, one at least", param="salt")


def _check_variant(where: str, variant: Variant) -> None:
    for field in ("name", "target", "adapter", "prompt_version"):
        value = getattr(variant, field)
        if value is not None and not _fits(value):
            raise BadRequest(
                f"{where}: {field}: 1 to {wire.MODEL_CHARACTERS} printable characters", param=field
            )
    if variant.target == WILDCARD:
        raise BadRequest(f"{where}: target: an alias of its own, not '*'", param="target")
    for name, value in variant.parameters.items():
        _check_parameter(f"{where}: parameters.{name}", name, value)


def _check_kind(where: str, split: Split, variant: Variant) -> None:
    """A prompt's arms differ in the version alone; an alias's arms have none."""
    if split.prompt is None and variant.prompt_version is not None:
        raise BadRequest(f"{where}: prompt_version: only in the split of a prompt", param="arms")
    if split.prompt is not None:
        others = variant.target or variant.adapter or variant.parameters
        if others or not variant.prompt_version:
            raise BadRequest(
                f"{where}: an arm of a prompt has a prompt_version and nothing else", param="arms"
            )


def _check_parameter(where: str, name: str, value: Any) -> None:
    if name in CALLERS or name in wire.OURS or name in wire.DENIED:
        raise BadRequest(f"{where}: not for a variant to set", param="parameters")
    checks = [table[name] for table in (wire.CHAT, wire.COMPLETION) if name in table]
    wrong = [check(value, Limits()) for check in checks]
    if checks and all(wrong):  # the endpoints read some fields differently: one that fits will do
        raise BadRequest(f"{where} {wrong[0]}", param="parameters")


def _fits(name: str) -> bool:
    return 0 < len(name) <= wire.MODEL_CHARACTERS and name.isprintable()
