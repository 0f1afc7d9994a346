"""What is otherwise with the prompts of a revision than with those of another: what has to be
judged, on which cases, and by which gate.

Both versions are asked the same cases, those of the head. Conditions of both gates count, so a
branch that loosens its gate is judged by the gate that it came from, and one that tightens it by
its own; what was changed is said.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from evals.gate import Condition
from evals.golden_cases import GoldenCase
from pipelines.prompt_revisions import Revision
from prompts.library import BadPromptFile
from prompts.prompt import Prompt

ALWAYS = ("latency", "output_tokens", "cost")  # measured whether the prompt's file says so or not
NAMED = 5


@dataclass(frozen=True, slots=True)
class Recast:
    """How the golden cases were changed; ids of cases."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.altered)

    def __str__(self) -> str:
        parts = (("added", self.added), ("removed", self.removed), ("altered", self.altered))
        return ", ".join(f"{len(ids)} {what} ({_named(ids)})" for what, ids in parts if ids)


@dataclass(frozen=True, slots=True)
class Change:
    """A prompt that is not as it was.

    Attributes:
        base, head: before and after; None where there is none.
        cases: what both are asked.
        conditions: of both gates.
        notes: what else was changed or is wrong, for who reads the report.
    """

    name: str
    base: Prompt | None
    head: Prompt | None
    cases: tuple[GoldenCase, ...] = ()
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def same_content(self) -> bool:
        """Whether both versions answer alike: cases, gate or metrics were changed, not the
        prompt."""
        both = self.base is not None and self.head is not None
        return both and self.base.content_hash == self.head.content_hash  # type: ignore[union-attr]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured of both: all that either asks for."""
        asked = [one.evaluation.metrics for one in (self.head, self.base) if one is not None]
        names = [*(name for names in asked for name in names),
                 *(one.metric for one in self.conditions), *ALWAYS]  # fmt: skip
        return tuple(dict.fromkeys(names))

    @property
    def seeds(self) -> int:
        """How often each case is asked; no fewer times than before."""
        return max(one.evaluation.seeds for one in (self.head, self.base) if one is not None)

    @property
    def asked(self) -> str:
        """A digest of what both versions are asked and judged by."""
        gate = [one.model_dump(mode="json") for one in self.conditions]
        given = [[one.row() for one in self.cases], gate, sorted(self.metrics), self.seeds]
        return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def base_cases(self) -> tuple[GoldenCase, ...]:
        """The cases as the base's version can be asked them: without variables that it has not."""
        assert self.base is not None
        known = {one.name for one in self.base.variables}
        return tuple(
            replace(
                one,
                variables={name: value for name, value in one.variables.items() if name in known},
            )
            for one in self.cases
        )


def changes(base: Revision, head: Revision) -> list[Change]:
    """Every prompt that is not the same in both: content, cases, gate, or other metrics.

    Raises: CasesUnreadable for cases of the head that cannot be read.
    """
    names = sorted(base.prompts.keys() | head.prompts.keys())
    found = (_change(name, base, head) for name in names)
    return [one for one in found if one is not None]


def against_production(production: Mapping[str, Prompt], head: Revision) -> list[Change]:
    """Every prompt whose content is not what `production` names, with its own gate and cases.

    One that has no production version is there without cases: there is nothing to ask.
    """
    found = []
    for name, prompt in sorted(head.prompts.items()):
        before = production.get(name)
        if before is None:
            found.append(Change(name, None, prompt))
        elif before.content_hash != prompt.content_hash:
            before = before.model_copy(update={"evaluation": prompt.evaluation})
            found.append(Change(name, before, prompt, _cases(prompt, head), _gate(prompt)))
    return found


def _change(name: str, base: Revision, head: Revision) -> Change | None:
    before, after = base.prompts.get(name), head.prompts.get(name)
    if after is None:
        return Change(name, before, None)
    unreadable = base.broken.get(head.origins[name])
    if before is None:
        broken = (f"the base's file cannot be read ({unreadable})",) if unreadable else ()
        return Change(name, None, after, _cases(after, head), _gate(after), broken)
    cases, recast, notes = _both_cases(before, after, base, head)
    alike = before.content_hash == after.content_hash and before.evaluation == after.evaluation
    if alike and not recast:
        return None
    try:
        gate = _gate(before)
    except BadPromptFile as error:
        gate = ()
        notes.append(f"the gate before cannot be read, and does not count: {error}")
    said = [*notes, *_gate_notes(gate, _gate(after)), *_other_notes(before, after)]
    if recast:
        said.append(f"golden cases were changed: {recast}; both versions are asked the new ones")
    conditions = tuple(dict.fromkeys((*gate, *_gate(after))))
    return Change(name, before, after, cases, conditions, tuple(said))


def _both_cases(
    before: Prompt, after: Prompt, base: Revision, head: Revision
) -> tuple[tuple[GoldenCase, ...], Recast, list[str]]:
    """The cases that both are asked, how they were changed, and what is to be said of them."""
    notes = list[str]()
    old: tuple[GoldenCase, ...] = ()
    if before.evaluation.cases is not None:
        try:
            old = base.cases(before.evaluation.cases)
        except ValueError as error:
            notes.append(f"the base's golden cases cannot be read ({error})")
    if after.evaluation.cases is None and old:
        notes.append(
            f"names no golden cases any more: asked are {before.evaluation.cases} as before"
        )
        return old, Recast(), notes
    new = _cases(after, head)
    return new, _recast(old, new), notes


def _cases(prompt: Prompt, revision: Revision) -> tuple[GoldenCase, ...]:
    name = prompt.evaluation.cases
    return () if name is None else revision.cases(name)


def _recast(old: Sequence[GoldenCase], new: Sequence[GoldenCase]) -> Recast:
    before, after = ({one.case_id: one.row() for one in side} for side in (old, new))
    return Recast(
        tuple(one for one in after if one not in before),
        tuple(one for one in before if one not in after),
        tuple(one for one in after if one in before and after[one] != before[one]),
    )


def _gate(prompt: Prompt) -> tuple[Condition, ...]:
    """The prompt's conditions. Raises BadPromptFile for one that is none."""
    try:
        return tuple(Condition.model_validate(one) for one in prompt.evaluation.gate)
    except ValueError as error:
        raise BadPromptFile(f"prompt {prompt.name}: evaluation.gate: {error}") from error


def _gate_notes(before: Sequence[Condition], after: Sequence[Condition]) -> list[str]:
    gone = [shown(one) for one in before if one not in after]
    new = [shown(one) for one in after if one not in before]
    notes = []
    if gone:
        notes.append(f"the gate was changed: not in it any more: {'; '.join(gone)} (counts still, "
                     "until this is merged)")  # fmt: skip
    if new:
        notes.append(f"the gate was changed: new in it: {'; '.join(new)} (counts already)")
    return notes


def _other_notes(before: Prompt, after: Prompt) -> list[str]:
    notes = []
    gone = [one for one in before.evaluation.metrics if one not in after.evaluation.metrics]
    if gone:
        notes.append(f"metrics were taken out: {', '.join(gone)} (measured still)")
    if after.evaluation.seeds < before.evaluation.seeds:
        notes.append(f"fewer seeds: {after.evaluation.seeds}, not {before.evaluation.seeds} (asked "
                     "with as many as before)")  # fmt: skip
    if before.model != after.model:
        notes.append(f"the model was changed: {before.model} before, {after.model} now")
    names = [{one.name for one in prompt.variables} for prompt in (before, after)]
    if names[0] != names[1]:
        notes.append("the variables were changed: whoever calls it has to give others "
                     f"({_named(sorted(names[0] ^ names[1]))})")  # fmt: skip
    return notes


def shown(condition: Condition) -> str:
    """A condition in a few words."""
    better = "improves by more than" if condition.kind == "superiority" else "worsens by at most"
    margin = f"{100 * condition.margin:g} %" if condition.relative else f"{condition.margin:g}"
    least = f"at least {condition.minimum_n} cases"
    return f"{condition.metric} {better} {margin} ({condition.direction}, {least})"


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
