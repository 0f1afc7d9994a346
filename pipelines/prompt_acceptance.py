"""From an accepted verdict to `production`: verdicts are kept beside the versions that they are on,
and after a merge the label moves to each version that one lets through.

A verdict counts only in the installation that it was made in: what one stack found of a prompt says
little of another with other models behind its aliases. So a merge is followed by an evaluation on
the stack that the prompts go to, and nothing has to be carried over or signed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.records import Verdict
from evals.verdicts import add_verdict, verdicts_on
from gateway.database import Conflict, Database
from gateway.prompt_versions import PRODUCTION, PromptLabelRow, find_version
from pipelines.prompt_change import Change
from pipelines.prompt_comparison import ASKED, Comparison
from pipelines.prompt_labels import last_rollback, subject_of
from pipelines.prompt_promotion import Labelled, LabelOrder, label
from pipelines.prompt_sync import Synced
from prompts.prompt import Prompt

REASON = "merged, and the gate let it through"


def production_prompts(session: Session) -> Mapping[str, Prompt]:
    """What `production` names, of every prompt that has it."""
    found = {}
    for row in session.scalars(select(PromptLabelRow).where(PromptLabelRow.label == PRODUCTION)):
        version = find_version(session, row.name, row.version)
        if version is not None:
            found[row.name] = version.prompt
    return found


def judged_already(session: Session, change: Change) -> Verdict | None:
    """The newest verdict on the change, if it is of the same two versions, cases and gate.

    To measure again until chance has it otherwise would let any prompt through some day. One from
    before a rollback counts no more.
    """
    if change.base is None or change.head is None:
        return None
    found = verdicts_on(session, subject_of(change.head))
    if not found or found[-1].baseline != subject_of(change.base):
        return None
    back = last_rollback(session, change.name)
    if back is not None and found[-1].created_at <= back.ts:
        return None
    return found[-1] if found[-1].evidence.get(ASKED) == change.asked else None


def keep_verdicts(
    database: Database, comparisons: Sequence[Comparison], evidence: Mapping[str, Any]
) -> list[Comparison]:
    """Store the verdicts, with `evidence` added; the comparisons as they are kept."""
    kept = []
    with database.transaction() as session:
        for one in comparisons:
            if one.verdict is not None:
                verdict = replace(one.verdict, evidence={**one.verdict.evidence, **evidence})
                add_verdict(session, verdict)
                one = replace(one, verdict=verdict)
            kept.append(one)
    return kept


def accept(
    database: Database, synced: Sequence[Synced], actor: str
) -> tuple[list[Labelled], list[str]]:
    """Let `production` name every synced version that a verdict lets through.

    Returns: what was moved, and why the others were not. A version that is in production, or whose
    prompt never had it, is in neither. A version that production was rolled back from waits for a
    person, whatever was measured since.
    """
    with database.session() as session:
        served = {name: one.content_hash for name, one in production_prompts(session).items()}
        backs = {one.name: last_rollback(session, one.name) for one in synced}
    moved, held = [], []
    for one in synced:
        if served.get(one.name, one.content_hash) == one.content_hash:
            continue
        back = backs[one.name]
        if back is not None and (back.before or {}).get("version") == one.version:
            held.append(
                f"prompt {one.name} version {one.version}: production was rolled back from it "
                f"({back.reason}); evaluate it again and move it by hand: "
                f"llmops prompts label {one.name} {one.version} {PRODUCTION}"
            )
            continue
        try:
            moved.append(
                label(database, LabelOrder(one.name, one.version, PRODUCTION, actor, REASON))
            )
        except Conflict as error:
            held.append(error.message)
    return moved, held
