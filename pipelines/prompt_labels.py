"""Labels of prompts: which version each names, and since when.

The state database is the truth, and MLflow's aliases follow. Where `production` was before is read
from the audit trail, which nobody can change: `first` and `promote` put a version on top of a
stack, `rollback` goes back to one below. Other labels, such as `candidate`, move freely.

Invariants: whoever moves a label calls `hold` first, so moves happen one after another, each whole,
with its audit row. Only `first`, `promote` and `rollback` move `production`.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import AuditRow, Change, record
from gateway.database import Database
from gateway.errors import BadRequest, NotFound
from gateway.prompt_versions import (
    PRODUCTION,
    PromptLabelRow,
    PromptVersionRow,
    find_version,
    label_of,
    labels_of,
    set_label,
    versions_of,
)
from prompts.prompt import Prompt

FIRST, PROMOTE, ROLLBACK, LABEL = "first", "promote", "rollback", "label"
ACTIONS = tuple(f"prompt.{kind}" for kind in (FIRST, PROMOTE, ROLLBACK))
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
EXPERIMENT, VERDICT = "experiment_id", "verdict_id"  # in a move's evidence
LABEL_CHARACTERS = 64
LOOK_AGAIN_SECONDS = 60.0
RESERVED = re.compile(r"latest|v[0-9]+")  # by MLflow, for itself


class Aliases(Protocol):
    """The part of MLflow's registry that follows the labels."""

    def aliases(self, name: str) -> Mapping[str, str]:
        """Versions by their labels."""

    def set_alias(self, name: str, label: str, version: str) -> None:
        """Let a label name a version. Again changes nothing."""


@dataclass(frozen=True, slots=True)
class LabelMove:
    """A move of a label that has been decided.

    Attributes:
        kind: `first`, `promote` or `rollback` of `production`; `label` of any other.
        verdict_id, experiment_id: what decided it.
        evidence: what the audit trail is told beside the ids.
    """

    kind: str
    name: str
    version: str
    actor: str
    reason: str
    label: str = PRODUCTION
    verdict_id: str | None = None
    experiment_id: str | None = None
    evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Production:
    """What `production` of a prompt names.

    Attributes:
        version: None where it was never set.
        previous: what a rollback goes to; None where there is nothing below.
        last: audit row of the newest move, if there was any.
    """

    name: str
    version: str | None
    previous: str | None
    last: AuditRow | None


def subject_of(prompt: Prompt) -> str:
    """What a verdict on this content of a prompt is on; the same before and after it is synced."""
    return f"prompt:{prompt.name}@{prompt.content_hash[:12]}"


def moves_of(session: Session, name: str) -> list[AuditRow]:
    """The moves of a prompt's `production`, oldest first."""
    query = select(AuditRow).where(AuditRow.subject == _subject(name), AuditRow.action.in_(ACTIONS))
    return list(session.scalars(query.order_by(AuditRow.id)))


def production_of(session: Session, name: str) -> Production:
    """What `production` names, and what it named before."""
    moves = moves_of(session, name)
    stack: list[str] = []
    for move in moves:
        version = str((move.after or {})["version"])
        if move.action == f"prompt.{ROLLBACK}" and version in stack:
            del stack[len(stack) - stack[::-1].index(version) :]
        else:
            stack.append(version)
    return Production(
        name=name,
        version=label_of(session, name, PRODUCTION),
        previous=stack[-2] if len(stack) > 1 else None,
        last=moves[-1] if moves else None,
    )


def last_rollback(session: Session, name: str) -> AuditRow | None:
    """The newest move of `production` back, if there was one."""
    query = select(AuditRow).where(
        AuditRow.subject == _subject(name), AuditRow.action == f"prompt.{ROLLBACK}"
    )
    return session.scalars(query.order_by(AuditRow.id.desc()).limit(1)).first()


def move_label(session: Session, move: LabelMove) -> str:
    """Move a label in the caller's transaction, with its audit row; returns that row's id.

    The caller has called `hold` and has checked that the move may be made.

    Raises:
        NotFound: there is no such version.
        BadRequest: the label cannot be one.
    """
    require_label(move.label)
    if (move.kind == LABEL) == (move.label == PRODUCTION):
        raise ValueError(f"{move.kind} does not move the label {move.label}")
    before = set_label(session, move.name, move.label, move.version)
    row = find_version(session, move.name, move.version)
    assert row is not None
    return record(
        session,
        Change(
            actor=move.actor,
            action=f"prompt.{move.kind}",
            subject=_subject(move.name),
            reason=move.reason,
            before=None if before is None else {"label": move.label, "version": before},
            after={"label": move.label, "version": move.version},
            evidence={
                "content_hash": row.content_hash,
                "git_sha": row.git_sha,
                VERDICT: move.verdict_id,
                EXPERIMENT: move.experiment_id,
                **(move.evidence or {}),
            },
        ),
    )


def require_label(label: str) -> None:
    """Raises BadRequest if `label` cannot be one, here or as MLflow's alias."""
    if not NAME.fullmatch(label) or len(label) > LABEL_CHARACTERS or RESERVED.fullmatch(label):
        raise BadRequest(
            f"label: {label[:LABEL_CHARACTERS]!r}: small letters, digits and '-', at most "
            f"{LABEL_CHARACTERS}; not latest, v1, v2, …, which MLflow keeps for itself",
            param="label",
        )


def require_version(session: Session, name: str, wanted: str) -> PromptVersionRow:
    """The version that a number or a label names. Raises NotFound, which names those there are."""
    version = label_of(session, name, wanted) or wanted
    row = find_version(session, name, version)
    if row is None:
        require_prompt(session, name)
        known = ", ".join(one.version for one in versions_of(session, name))
        raise NotFound(
            f"prompt {name} has no version or label {wanted[:64]!r} (versions: {known})",
            param="version",
        )
    return row


def require_prompt(session: Session, name: str) -> None:
    """Raises NotFound if there is no such prompt."""
    if not versions_of(session, name):
        raise NotFound(
            f"there is no prompt {name[:100]!r} (llmops prompts sync takes those of a folder; "
            "llmops prompts list)",
            param="name",
        )


class LabelFollower:
    """Brings MLflow's aliases of prompts to what the database says, and looks whether they are
    still so now and then: in MLflow anybody may move them."""

    def __init__(self, database: Database, registry: Aliases):
        self._database = database
        self._registry = registry
        self._agreed: dict[str, tuple[Mapping[str, str], float]] = {}

    def names(self) -> list[str]:
        """Prompts whose aliases have to be looked at."""
        with self._database.session() as session:
            names = session.scalars(select(PromptLabelRow.name).distinct())
            wanted = {name: labels_of(session, name) for name in sorted(names)}
        return [name for name, labels in wanted.items() if not self._agrees(name, labels)]

    def follow(self, name: str) -> str | None:
        """Tell MLflow the labels of `name`; says what was told, if anything had to be.

        Raises what the registry raises.
        """
        told: dict[str, str] = {}
        wanted, known = self._wanted(name), dict(self._registry.aliases(name))
        while True:
            for label, version in wanted.items():
                if known.get(label) != version:
                    self._registry.set_alias(name, label, version)
                    known[label] = told[label] = version
            again = self._wanted(name)
            if again == wanted:
                break
            wanted = again  # it was moved meanwhile: the newest word is the last
        self._agreed[name] = wanted, time.monotonic()
        said = ", ".join(f"{label} {version}" for label, version in told.items())
        return f"prompt {name}: MLflow's aliases: {said}" if told else None

    def _agrees(self, name: str, labels: Mapping[str, str]) -> bool:
        agreed, at = self._agreed.get(name, (None, 0.0))
        return agreed == labels and time.monotonic() - at < LOOK_AGAIN_SECONDS

    def _wanted(self, name: str) -> Mapping[str, str]:
        with self._database.session() as session:
            return labels_of(session, name)


def _subject(name: str) -> str:
    return f"prompt:{name}"
