"""Splits in the state database. Who writes one takes a number of the version counter, so that
workers see it within a poll; who may write one, and the audit row, is the caller's business."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from gateway.database import Base, JsonText, next_version
from gateway.errors import BadRequest
from gateway.variants import Arm, Split, Variant


class SplitRow(Base):
    """The split of one alias; none: the alias's configured model answers everybody."""

    __tablename__ = "split"

    alias: Mapped[str] = mapped_column(String(128), primary_key=True)
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
        BadRequest: no arm, two arms of one name, a weight below zero, or no weight above it.
    """
    _check(split)
    row = session.get(SplitRow, split.alias) or SplitRow(alias=split.alias)
    row.experiment_id, row.salt = split.experiment_id, split.salt
    row.arms = split.as_dict()["arms"]
    row.version = next_version(session)
    session.add(row)


def all_splits(session: Session) -> Mapping[str, Split]:
    """Every split by its alias."""
    return {row.alias: split_of(row) for row in session.scalars(select(SplitRow))}


def split_of(row: SplitRow) -> Split:
    """The record in a row."""
    arms = tuple(Arm(Variant(**arm["variant"]), arm["weight"]) for arm in row.arms)
    return Split(row.alias, arms, row.experiment_id, row.salt)


def _check(split: Split) -> None:
    names = [arm.variant.name for arm in split.arms]
    if not names or len(set(names)) != len(names):
        raise BadRequest(f"split of {split.alias}: every arm needs a name of its own", param="arms")
    weights = [arm.weight for arm in split.arms]
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise BadRequest(
            f"split of {split.alias}: weights {weights}: none below 0, one at least above",
            param="weight",
        )
    if any(arm.variant.prompt_version for arm in split.arms):
        raise BadRequest(
            f"split of {split.alias}: prompt_version: there is no prompt registry", param="arms"
        )
