"""A prompt before and after a change, asked the same cases with the same seeds at the same time,
and what follows from it.

A change fails where the gate found it worse with confidence (`reject`), where a version cannot be
rendered or is refused by the model, and where the gate's conditions could not be judged: what was
not judged does not pass. `hold` passes, in the words "no difference shown"; only `promote` lets
`production` move.

False alarms: a condition says "worse" of an unchanged prompt at most once in 40 times. A pull
request may change many prompts with many conditions, so a rejection stands only if it also holds
with intervals that are wide enough for all conditions of the run together (Bonferroni), which
keeps the share of unchanged pull requests that fail within `FALSE_ALARMS`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from enum import StrEnum
from threading import Event

from evals.evaluation import Client, Evaluation, Say, evaluate_prompt, quiet
from evals.evaluation_run import REFUSED, require_answers
from evals.gate import Condition, judge
from evals.journal import Journal
from evals.metrics import by_instrument, canonical
from evals.records import Decision, Verdict
from pipelines.prompt_change import Change
from pipelines.prompt_labels import subject_of
from prompts.prompt import Prompt

FALSE_ALARMS = 0.05
ASKED = "asked"  # in a verdict's evidence: digest of what both versions were asked
PURPOSE = "prompt change"
FIRST = "there is no version before to compare with; its first label is a person's decision"


class Outcome(StrEnum):
    """What became of a changed prompt."""

    BETTER = "better"
    SAME = "no difference shown"
    WORSE = "worse"
    UNFIT = "cannot be asked"
    SHORT = "could not be judged"
    NEW = "new"
    REMOVED = "removed"
    UNCHANGED = "the prompt itself was not changed"
    UNJUDGED = "nothing to judge it by"


FAILED = frozenset((Outcome.WORSE, Outcome.UNFIT, Outcome.SHORT))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found of a change.

    Attributes:
        base, head: what was measured; None where nothing was asked.
        verdict: by the gate; None where there is nothing to compare with.
        reasons: sentences, the deciding one first.
    """

    change: Change
    outcome: Outcome
    reasons: tuple[str, ...]
    base: Evaluation | None = None
    head: Evaluation | None = None
    verdict: Verdict | None = None

    @property
    def failed(self) -> bool:
        """Whether it must not be merged as it is."""
        return self.outcome in FAILED


def compare(
    changes: Sequence[Change],
    client: Client,
    *,
    journal: Journal | None = None,
    say: Say = quiet,
) -> list[Comparison]:
    """Ask and judge every change.

    Raises: StackTrouble; ValueError for an unknown metric.
    """
    tests = conditions_in(changes)
    found = []
    for change in changes:
        base, head = _asked(change, client, journal, say)
        found.append(conclude(change, base, head, tests))
    return found


def conditions_in(changes: Sequence[Change]) -> int:
    """How many conditions the changes are judged by together."""
    return sum(
        len(one.conditions) for one in changes if one.base and one.head and not one.same_content
    )


def conclude(
    change: Change, base: Evaluation | None, head: Evaluation | None, tests: int
) -> Comparison:
    """What follows from what was measured; `tests`: conditions of all changes of the run."""
    if change.head is None:
        return Comparison(change, Outcome.REMOVED, ("the prompt is not there any more",))
    if head is None and change.base is None:
        return Comparison(change, Outcome.NEW, (FIRST,))
    if head is None:
        return Comparison(change, Outcome.UNJUDGED, ("it has no golden cases",))
    unfit = _unfit(head, base)
    if unfit is not None and base is None:
        return Comparison(change, Outcome.UNFIT, (unfit,), None, head)
    if change.base is None:
        return Comparison(change, Outcome.NEW, (FIRST,), None, head)
    if change.same_content:
        reason = "both versions are the same content, and were asked once"
        return Comparison(change, Outcome.UNCHANGED, (reason,), None, head)
    assert base is not None
    verdict = _verdict(change, base, head, tests)
    if unfit is not None:
        reasons = (unfit, *verdict.reasons)
        verdict = replace(verdict, decision=Decision.REJECT, reasons=reasons)
        return Comparison(change, Outcome.UNFIT, reasons, base, head, verdict)
    outcome, reasons = _outcome(change, base, verdict)
    said = (*reasons, *verdict.reasons, *_askless(change, base, head))
    return Comparison(change, outcome, said, base, head, verdict)


def _verdict(change: Change, base: Evaluation, head: Evaluation, tests: int) -> Verdict:
    """The gate's; a rejection only where it holds for all `tests` conditions at once."""
    assert change.base is not None and change.head is not None
    subjects = subject_of(change.head), subject_of(change.base)
    results = {name: _values(name, base, head) for name in change.metrics}
    evidence = {
        "purpose": PURPOSE,
        "targets": head.targets,
        "cases": len(change.cases),
        ASKED: change.asked,
    }
    by = by_instrument(change.metrics)
    verdict = judge(*subjects, results, change.conditions, evidence, by)
    if verdict.decision is not Decision.REJECT:
        return verdict
    wide = [_widened(one, tests) for one in change.conditions]
    corrected = judge(*subjects, results, wide, evidence, by)
    if corrected.decision is Decision.REJECT:
        return verdict
    said = f"not worse beyond doubt among the {tests} conditions of this run"
    reasons = (f"{said} ({corrected.reasons[0]})", *verdict.reasons)
    return replace(verdict, decision=Decision.HOLD, reasons=reasons)


def _values(
    metric: str, base: Evaluation, head: Evaluation
) -> tuple[list[float | None], list[float | None]]:
    """Both sides' values; none where too few answers carry what the metric needs to speak for
    all."""
    sides = (base, head)
    if not all(one.coverage[canonical(metric)].applicable for one in sides):
        return [], []
    return base.values(metric), head.values(metric)


def _askless(change: Change, base: Evaluation, head: Evaluation) -> tuple[str, ...]:
    """What is to be said of cases that neither version can be asked."""
    lost = [one for one in change.cases if one.case_id in head.lost and one.case_id in base.lost]
    if not lost:
        return ()
    first = f"{lost[0].where}: {head.lost[lost[0].case_id]}"
    return (f"{len(lost)} of {len(change.cases)} cases fit neither version ({first})",)


def _widened(condition: Condition, tests: int) -> Condition:
    """With an interval for `tests` conditions at once; never narrower than its own."""
    wide = 1 - 2 * FALSE_ALARMS / max(tests, 1)
    return condition.model_copy(update={"confidence": max(condition.confidence, wide)})


def _outcome(change: Change, base: Evaluation, verdict: Verdict) -> tuple[Outcome, tuple[str, ...]]:
    """What the verdict means for the change, and what is to be said before the gate's reasons."""
    conditions = change.conditions
    if not conditions:
        return Outcome.UNJUDGED, ("it has no gate",)
    if verdict.decision is Decision.REJECT:
        return Outcome.WORSE, ()
    judged = zip(conditions, verdict.metrics[: len(conditions)], strict=True)
    short = [
        f"{asked.metric}: {found.n} pairs of values, and its condition wants {asked.minimum_n}"
        for asked, found in judged
        if found.n < asked.minimum_n
    ]
    if short:
        if base.lost:
            case_id, said = next(iter(base.lost.items()))
            short.append(
                f"the version before cannot be asked {len(base.lost)} of the cases "
                f"({case_id}: {said}): a prompt that wants other variables needs defaults for "
                "them, or a name of its own"
            )
        return Outcome.SHORT, tuple(short)
    return (Outcome.BETTER if verdict.decision is Decision.PROMOTE else Outcome.SAME), ()


def _unfit(head: Evaluation, base: Evaluation | None) -> str | None:
    """Why cases cannot be asked by the head's version; None where all can that the base's could."""
    could = {} if base is None else base.lost
    lost = {case_id: said for case_id, said in head.lost.items() if case_id not in could}
    before = {} if base is None else _refused(base)
    refused = {id_: said for id_, said in _refused(head).items() if id_ not in before}
    for what, cases in (("cannot be rendered", lost), ("is refused", refused)):
        if cases:
            case_id, said = next(iter(cases.items()))
            return f"it {what} with {len(cases)} of {len(head.cases)} cases ({case_id}: {said})"
    return None


def _refused(evaluation: Evaluation) -> dict[str, str]:
    """Cases that the model refuses, and what it says."""
    return {
        answer.case_id: answer.error
        for answers in evaluation.answers
        for answer in answers
        if answer.error is not None and REFUSED.search(answer.error)
    }


def _asked(
    change: Change, client: Client, journal: Journal | None, say: Say
) -> tuple[Evaluation | None, Evaluation | None]:
    """Base and head, measured. Both are asked at the same time, so that both meet the same load."""
    if change.head is None or not change.cases:
        return None, None
    stopped = Event()
    said = _Both(say, stopped, change)

    def evaluated(prompt: Prompt, side: str) -> Evaluation:
        update = {"seeds": change.seeds}
        evaluation = prompt.evaluation.model_copy(update=update)
        asked = prompt.model_copy(update={"evaluation": evaluation})
        cases = change.cases if side == "head" else change.base_cases()
        found = evaluate_prompt(
            asked, cases, client, metrics=change.metrics, journal=journal, say=said.of(side)
        )
        require_answers(found, f"prompt {found.name}, {side}")
        return found

    if change.base is None or change.same_content:
        return None, evaluated(change.head, "head")
    client = replace(client, concurrency=max(client.concurrency // 2, 1))
    with ThreadPoolExecutor(2) as pool:
        sides = [pool.submit(evaluated, change.base, "base"),
                 pool.submit(evaluated, change.head, "head")]  # fmt: skip
        try:
            for side in wait(sides, return_when=FIRST_EXCEPTION).done:
                side.result()
        except BaseException:
            stopped.set()
            raise
    return sides[0].result(), sides[1].result()


class _Stopped(RuntimeError):
    """The other side failed, or a person ended the command."""


@dataclass(frozen=True, slots=True)
class _Both:
    """Progress of two sides at once, and the way to end both."""

    say: Say
    stopped: Event
    change: Change

    def of(self, side: str) -> Callable[[str, int, int], None]:
        def say(what: str, done: int, total: int) -> None:
            if self.stopped.is_set():
                raise _Stopped
            self.say(f"{self.change.name}, {side}: {what}", done, total)

        return say
