"""A title: who answers an alias outside of experiments, and how another comes to answer it.

The title of a model's alias is held by a model version, that of `prompt:NAME` by the version that
`production` names. Experiments know titles and nothing else of what they try, so what differs
between the two is in their titles, `pipelines.model_title` and `pipelines.prompt_title`.

All methods work in the caller's transaction; those that change something, under `hold`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.orm import Session

from gateway.variants import Variant
from pipelines.champion import Move
from pipelines.tables import ExperimentRow


@dataclass(frozen=True, slots=True)
class Entrants:
    """The two sides of an experiment that may begin.

    Attributes:
        holder: version that has the title; None is the plain base model.
        version: the candidate; None where the holder is tried against itself (A/A).
        champion, challenger: what each side's users get.
        adapters: folders of what an engine has to serve for that, by its name.
        evidence: what the audit trail is told of the candidate.
    """

    holder: str | None
    version: str | None
    champion: Variant
    challenger: Variant
    adapters: Mapping[str, Path] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Title(Protocol):
    """The title of one alias.

    Attributes:
        place: the alias, for people.
        column: field of a variant, and column of the log, that says what an arm's users get.
    """

    alias: str
    place: str
    column: str

    def holder(self, session: Session) -> str | None:
        """The version that has it; None is the plain base model."""

    def previous(self, session: Session) -> str | None:
        """The version that had it before the holder."""

    def entrants(
        self, session: Session, name: str, version: str | None, unjudged: str | None
    ) -> Entrants:
        """Both sides of an experiment of `version`; None: the holder against itself.

        Raises:
            NotFound: no such version.
            Conflict: it may have no traffic (`unjudged` may say why it may), or has the title.
        """

    def subjects(self, session: Session, row: ExperimentRow) -> Mapping[str, str]:
        """What a verdict calls each arm of an experiment."""

    def served(self, session: Session, name: str, version: str | None) -> str | None:
        """The value of `column` for a version; None if there is no such version."""

    def called(self, name: str, version: str) -> str:
        """A version's name in lineage."""

    def moves_of(self, session: Session, experiment_id: str) -> Sequence[str]:
        """Ids of the moves of the title that an experiment decided."""

    def give_all_traffic(self, session: Session) -> None:
        """Let the holder answer everybody."""

    def move(self, session: Session, move: Move) -> None:
        """Give the title, and all traffic, to another version, with its audit row."""
