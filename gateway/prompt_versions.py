"""Versions of prompts and their labels in the state database, from which the gateway serves them.

Git has the files and MLflow the index; a row here is a file's content as it was at one commit, and
is never changed. Labels (`production`, …) move. Whoever writes either takes a number of the version
counter, so that workers see it within a poll; who may, and the audit row, is the caller's business.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from gateway.database import Base, Conflict, JsonText, Utc, next_version
from gateway.errors import NotFound
from prompts.prompt import Prompt

PRODUCTION = "production"


class PromptVersionRow(Base):
    """One version of a prompt; `version` is MLflow's number, `content` is `Prompt.content`.

    `changed`: the number of the change that wrote it.
    """

    __tablename__ = "prompt_version"
    __table_args__ = (Index("ix_prompt_version_content_hash", "content_hash"),)

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[str] = mapped_column(String(16), primary_key=True)
    content_hash: Mapped[str] = mapped_column(String(64))
    content: Mapped[dict[str, Any]] = mapped_column(JsonText)
    git_sha: Mapped[str | None] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)
    changed: Mapped[int] = mapped_column(BigInteger)

    @property
    def prompt(self) -> Prompt:
        """The prompt in it. Raises ValueError if the row is damaged."""
        return Prompt.model_validate({"name": self.name, **self.content})


class PromptLabelRow(Base):
    """Which version of a prompt a label names."""

    __tablename__ = "prompt_label"
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"],
            ["prompt_version.name", "prompt_version.version"],
            name="fk_prompt_label_prompt_version",
        ),
    )

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    label: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(16))
    changed: Mapped[int] = mapped_column(BigInteger)


def put_version(session: Session, row: PromptVersionRow) -> None:
    """Add a version; its `changed` is filled in. The same version again changes nothing.

    Raises:
        Conflict: the version is there with another content.
    """
    known = find_version(session, row.name, row.version)
    if known is None:
        row.changed = next_version(session)
        session.add(row)
        session.flush()
    elif known.content_hash != row.content_hash:
        raise Conflict(
            f"prompt {row.name} version {row.version} is there with another content "
            f"({known.content_hash[:12]}, not {row.content_hash[:12]}); versions never change"
        )


def set_label(session: Session, name: str, label: str, version: str) -> str | None:
    """Let a label name a version; returns the version before.

    Raises:
        NotFound: there is no such version.
    """
    if find_version(session, name, version) is None:
        raise NotFound(f"prompt {name[:100]} has no version {version[:16]!r}", param="version")
    changed = next_version(session)
    row = session.get(PromptLabelRow, (name, label))
    if row is None:
        session.add(PromptLabelRow(name=name, label=label, version=version, changed=changed))
        return None
    before, row.version, row.changed = row.version, version, changed
    return before


def find_version(session: Session, name: str, version: str) -> PromptVersionRow | None:
    """The row of a version, if there is one."""
    return session.get(PromptVersionRow, (name, version))


def versions_of(session: Session, name: str) -> list[PromptVersionRow]:
    """All versions of a prompt, oldest first."""
    rows = session.scalars(select(PromptVersionRow).where(PromptVersionRow.name == name))
    return sorted(rows, key=lambda row: row.changed)


def label_of(session: Session, name: str, label: str) -> str | None:
    """The version that a label names, if any."""
    row = session.get(PromptLabelRow, (name, label))
    return None if row is None else row.version


def labels_of(session: Session, name: str) -> Mapping[str, str]:
    """Version by label."""
    rows = session.scalars(select(PromptLabelRow).where(PromptLabelRow.name == name))
    return {row.label: row.version for row in rows}
