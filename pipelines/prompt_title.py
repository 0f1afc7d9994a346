"""The title of a prompt: the version that `production` names. The audit trail is its record."""

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy.orm import Session

from evals.records import Decision
from evals.verdicts import verdicts_on
from gateway.database import Conflict
from gateway.prompt_versions import PRODUCTION, PromptVersionRow, find_version
from gateway.splits import drop_split
from gateway.variants import PROMPT_SPLIT, Variant
from pipelines.champion import CHALLENGER, CHAMPION, Move
from pipelines.prompt_labels import (
    EXPERIMENT,
    LabelMove,
    move_label,
    moves_of,
    production_of,
    require_prompt,
    require_version,
    subject_of,
)
from pipelines.tables import ExperimentRow
from pipelines.title import Entrants
from prompts.prompt import Prompt, Variable


class PromptTitle:
    """See `pipelines.title.Title`."""

    column = "prompt_version"

    def __init__(self, alias: str):
        self.alias = alias
        self.name = alias.removeprefix(PROMPT_SPLIT)
        self.place = f"prompt {self.name}"

    def holder(self, session: Session) -> str | None:
        """The production version."""
        return production_of(session, self.name).version

    def previous(self, session: Session) -> str | None:
        """The production version before."""
        return production_of(session, self.name).previous

    def entrants(
        self, session: Session, name: str, version: str | None, unjudged: str | None
    ) -> Entrants:
        """The production version, and one that callers of it can be given instead."""
        holder = self.holder(session)
        if holder is None:
            require_prompt(session, self.name)
            raise Conflict(
                f"prompt {self.name} has no production version that a candidate could be compared "
                "with; the first one is set by: llmops prompts sync --first-label"
            )
        baseline = require_version(session, self.name, holder)
        candidate = baseline if version is None else require_version(session, self.name, version)
        if version is not None:
            _require_eligible(session, baseline, candidate, (unjudged or "").strip())
        return Entrants(
            holder=holder,
            version=None if version is None else candidate.version,
            champion=Variant(CHAMPION, prompt_version=baseline.version),
            challenger=Variant(CHALLENGER, prompt_version=candidate.version),
            evidence={
                "version": candidate.version,
                "content_hash": candidate.content_hash,
                "git_sha": candidate.git_sha,
                "champion_version": holder,
            },
        )

    def subjects(self, session: Session, row: ExperimentRow) -> Mapping[str, str]:
        """The arms' contents."""
        versions = {arm["variant"]["name"]: arm["variant"]["prompt_version"] for arm in row.arms}
        return {
            arm: subject_of(require_version(session, self.name, version).prompt)
            for arm, version in versions.items()
        }

    def served(self, session: Session, name: str, version: str | None) -> str | None:
        """The version itself."""
        there = version is not None and find_version(session, self.name, version) is not None
        return version if there else None

    def called(self, name: str, version: str) -> str:
        """Prompt and version."""
        return f"prompt {self.name}@{version}"

    def moves_of(self, session: Session, experiment_id: str) -> Sequence[str]:
        """Rows of the audit trail."""
        moves = moves_of(session, self.name)
        return [row.id for row in moves if (row.evidence or {}).get(EXPERIMENT) == experiment_id]

    def give_all_traffic(self, session: Session) -> None:
        """No split: the label says what everybody gets."""
        drop_split(session, self.alias)

    def move(self, session: Session, move: Move) -> None:
        """A move of the label; MLflow's alias follows."""
        if move.to_version is None or move.reason is None:
            raise ValueError(f"{self.alias}: a label moves to a version, for a reason")
        given = LabelMove(
            kind=move.kind,
            name=self.name,
            version=move.to_version,
            actor=move.actor,
            reason=move.reason,
            verdict_id=move.verdict_id,
            experiment_id=move.experiment_id,
            evidence=move.evidence,
        )
        move_label(session, given)
        self.give_all_traffic(session)


def misfits(production: Prompt, candidate: Prompt) -> Iterator[str]:
    """Why requests that fit `production` would be refused by `candidate`, by the variable."""
    now = {one.name: one for one in production.variables}
    then = {one.name: one for one in candidate.variables}
    for name in sorted(now.keys() - then.keys()):
        yield f"{name}: callers give it, the candidate does not know it"
    for name, wanted in then.items():
        known = now.get(name)
        if known is None:
            if wanted.required:
                yield f"{name}: the candidate requires it, callers do not give it"
        elif wanted.required and not known.required:
            yield f"{name}: the candidate requires it, callers may leave it out"
        elif not _takes(wanted, known):
            yield f"{name}: callers give a {known.type}, the candidate wants a {wanted.type}"


def _takes(wanted: Variable, known: Variable) -> bool:
    return wanted.type == known.type or (wanted.type, known.type) == ("number", "integer")


def _require_eligible(
    session: Session, baseline: PromptVersionRow, candidate: PromptVersionRow, unjudged: str
) -> None:
    """Conflict if the candidate is no other, callers could not use it, or the gate refused it."""
    where = f"prompt {candidate.name} version {candidate.version}"
    if candidate.version == baseline.version:
        raise Conflict(f"{where} is what {PRODUCTION} names already")
    problems = list(misfits(baseline.prompt, candidate.prompt))
    if problems:
        raise Conflict(
            f"{where} gets no traffic: its variables are others than those of version "
            f"{baseline.version}, which requests are made for: {'; '.join(problems)}"
        )
    judged = verdicts_on(session, subject_of(candidate.prompt))
    if judged and judged[-1].decision is Decision.REJECT and not unjudged:
        raise Conflict(
            f"{where} gets no traffic: the verdict on it is reject: {judged[-1].reasons[0]}; "
            "evaluate it again, or say why it is tried all the same (--unjudged)"
        )
