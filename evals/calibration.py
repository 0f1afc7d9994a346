"""What a judge is worth: its agreement with labels, measured once for each pin, kept as a verdict.

Labelled answers are golden cases whose expected answer is `{"score": 1}` (the answer is supported)
or `{"score": 0}`, as in `golden/judge.jsonl`. The verdict's subject is the judge's metric, model
and pin; its baseline is chance, which kappa is 0 for. Whoever judges with another model, or by a
prompt that was changed, is another judge, and has to be calibrated anew.

A gate believes a judge whose kappa is at least `LEAST_KAPPA` with a lower bound of at least
`LEAST_BOUND`, on at least `LEAST_ANSWERS`; `require_calibrated` refuses any other, with its
figures. A trial, on answers that somebody picked, is on a subject of its own, which no gate reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import uuid_utils
from sqlalchemy.orm import Session

from evals.agreement import Estimate, kappa
from evals.gate import Condition
from evals.golden_cases import GoldenCase, case_for
from evals.judge import RESPONSE, Judge
from evals.metrics import Instruments, metric_named, pin_of, require_metrics, scores_of
from evals.records import Answer, Case, Decision, MetricResult, Score, Verdict
from evals.verdicts import verdicts_on
from gateway.database import now

LEAST_KAPPA = 0.6
LEAST_BOUND = 0.4
LEAST_ANSWERS = 100
TRIAL = "trial:"
SUPPORTED = 0.5  # a judge's value from which on it says that the answer is supported,
THRESHOLDS: Mapping[str, float] = {"faithfulness": 1.0}  # but one unfaithful statement is enough
QUESTION = "What do the texts say?"  # where a labelled answer is to none and a metric wants one
CHANCE = "chance"
KAPPA, FAILED = "kappa", "failed_judgements"


class JudgeRefused(ValueError):
    """A judge that a gate may not believe; the message has its figures."""


class NothingJudged(RuntimeError):
    """A judge that said nothing of any answer; the message has the first reason."""


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer and what people say of it."""

    case: Case
    answer: Answer
    supported: bool


def labelled_answers(judge: Judge, golden: Sequence[GoldenCase]) -> list[LabelledAnswer]:
    """Golden cases of the judge's prompt as labelled answers.

    Raises: ValueError, with file and line, for a case without a label.
    """
    variable = judge.prompt.evaluation.fields.get(RESPONSE)
    if variable is None:
        raise ValueError(
            f"prompt {judge.prompt.name}: evaluation.fields names no variable for {RESPONSE!r}"
        )
    found = []
    for one in golden:
        label = one.expected.get("score") if isinstance(one.expected, Mapping) else None
        if label not in (0, 1):
            raise ValueError(f'{one.where}: expected: {{"score": 0}} or {{"score": 1}} is wanted')
        case = case_for(judge.prompt, one)
        if case.user_input is None:
            case = replace(case, user_input=QUESTION)
        answer = Answer(one.case_id, str(one.variables.get(variable, "")), 0.0)
        found.append(LabelledAnswer(case, answer, label == 1))
    return found


def calibrate(
    metric: str,
    labelled: Sequence[LabelledAnswer],
    instruments: Instruments,
    *,
    trial: str | None = None,
) -> tuple[Verdict, list[Score]]:
    """The verdict on a judge, and what it said of each answer.

    An answer that it could not judge counts as judged wrongly.

    Args:
        trial: why no gate shall go by it; None: gates do.

    Raises: NothingJudged where it could not judge one: then it was hardly there.
    """
    judge = instruments.judge
    assert judge is not None
    threshold = THRESHOLDS.get(metric, SUPPORTED)
    samples = [(one.case, one.answer) for one in labelled]
    scores = scores_of(metric_named(metric, judge), samples, instruments)
    failed = sum(score.value is None for score in scores)
    if failed == len(scores):
        reason = scores[0].reason if scores else "there are no answers"
        raise NothingJudged(f"{judge.model} could not judge one answer: {reason}")
    labels = [one.supported for one in labelled]
    said = [
        not label if score.value is None else score.value >= threshold
        for score, label in zip(scores, labels, strict=True)
    ]
    found = kappa(said, labels)
    passed = _good(found) and (trial is not None or found.n >= LEAST_ANSWERS)
    results = (
        MetricResult(KAPPA, 0.0, found.value, found.value, found.low, found.high, found.n, passed),
        MetricResult(FAILED, None, float(failed), None, None, None, found.n, None),
    )
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=f"{TRIAL if trial else ''}{subject_of(metric, judge)}",
        baseline=CHANCE,
        decision=Decision.PROMOTE if passed else Decision.REJECT,
        metrics=results,
        reasons=_reasons(found, failed, scores, trial),
        evidence=_evidence(metric, judge) | {"threshold": threshold},
        created_at=now(),
    ), scores


def subject_of(metric: str, judge: Judge) -> str:
    """What a judge's verdict is on."""
    return f"judge:{metric}:{judge.model}@{pin_of(metric, judge)}"


def calibration_of(session: Session, metric: str, judge: Judge) -> Verdict | None:
    """The newest calibration of exactly this judge."""
    found = verdicts_on(session, subject_of(metric, judge))
    return found[-1] if found else None


def require_calibrated(
    session: Session,
    conditions: Sequence[Condition],
    judge: Judge | None,
    where: str = "the gate",
) -> None:
    """A gate whose conditions rest on a judge may only believe one that was found good.

    Args:
        where: the gate stands, for messages.

    Raises: JudgeRefused; ValueError for a metric that there is not.
    """
    require_metrics((one.metric for one in conditions), where)
    for condition in conditions:
        if not metric_named(condition.metric).judged:
            continue
        if judge is None:
            raise JudgeRefused(f"the gate asks for {condition.metric}, and no judge is set")
        verdict = calibration_of(session, condition.metric, judge)
        who = f"{condition.metric} judged by {judge.model}"
        how = f"llmops evals calibrate --metric {condition.metric} --model {judge.model}"
        if verdict is None:
            raise JudgeRefused(f"{who}: it was never calibrated with this prompt; run: {how}")
        if verdict.decision is not Decision.PROMOTE:
            raise JudgeRefused(f"{who}: no gate believes it: {verdict.reasons[0]}")
        answers = verdict.metrics[0].n
        if answers < LEAST_ANSWERS:
            raise JudgeRefused(f"{who}: {_few(answers)}; run: {how}")


def _evidence(metric: str, judge: Judge) -> dict[str, Any]:
    return {
        "metric": metric,
        "model": judge.model,
        "prompt": judge.prompt.content_hash,
        "pin": pin_of(metric, judge),
    }


def _good(found: Estimate) -> bool:
    return found.value >= LEAST_KAPPA and found.low >= LEAST_BOUND


def _few(answers: int) -> str:
    return f"{answers} labelled answers, and a gate needs {LEAST_ANSWERS}"


def _reasons(
    found: Estimate, failed: int, scores: Sequence[Score], trial: str | None
) -> tuple[str, ...]:
    needed = f"a gate needs {LEAST_KAPPA:g} with a lower bound of {LEAST_BOUND:g}"
    figures = f"kappa {found} on {found.n} labelled answers; {needed}"
    reasons = [f"{figures}: {'accepted' if _good(found) else 'refused'}"]
    if trial is not None:
        reasons.append(f"a trial, which no gate goes by: {trial}")
    elif found.n < LEAST_ANSWERS:
        reasons[0] = f"{figures}: refused: {_few(found.n)}"
    if failed:
        first = next(score.reason for score in scores if score.value is None)
        reasons.append(
            f"{failed} answers could not be judged and count as judged wrongly ({first})"
        )
    return tuple(reasons)
