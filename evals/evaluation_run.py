"""One evaluation from its order to its report: golden cases, or a window of the request log.

Nothing is asked before all that is known to be wrong was said: a broken file of cases, a metric
that there is not, a judge that no gate believes. And nothing is said of a prompt where requests got
no answer for no fault of its own: what is missing would count against one version, or the other.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy.orm import Session

from evals.calibration import calibration_of, require_calibrated
from evals.evaluation import Client, Evaluation, Say, evaluate_prompt, measured
from evals.evaluation_page import page
from evals.evaluation_report import EvaluationReport, markdown, table_of
from evals.evaluation_verdict import SUBJECT, Requirement, beside, by_itself
from evals.gate import Condition
from evals.golden_cases import check_golden, golden_path, load_golden
from evals.journal import MOST_HOURS, Journal, key_of
from evals.logged import Window, evaluation_of
from evals.metrics import metrics_named, require_metrics
from gateway.request_log import LogReader
from gateway.whole_file import write_whole
from prompts.prompt import Prompt

PAGE, TEXT, TABLE = "report.html", "report.md", "answers.json"
KEPT_REPORTS = 50  # of a prompt
DIGITS = 12
# What a server says of the request itself. Not 401, 403, 404, 408, 429: those are the stack's.
REFUSED = re.compile(r" answered (400|413|422): ")


class StackTrouble(RuntimeError):
    """Cases got no answer for no fault of a prompt: nothing can be said of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that is asked.

    Attributes:
        called: its name and version, for people.
        subject: what a gate's verdict on it is on.
        rules: the file that says how it is evaluated; None where there is none.
    """

    prompt: Prompt
    called: str
    subject: str
    rules: Path | None = None

    @property
    def named(self) -> str:
        """With its file, for messages on what stands there."""
        return self.called if self.rules is None else f"{self.called} ({self.rules})"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be evaluated.

    Attributes:
        baseline: what the gate compares with; None: the evaluation stands by itself.
        metrics: their names.
        cases: a file instead of the prompt's own.
        no_label: why what is found decides no label; None where it does.
    """

    asked: Asked
    client: Client
    metrics: Sequence[str]
    baseline: Asked | None = None
    requirements: Sequence[Requirement] = ()
    cases: str | None = None
    no_label: str | None = None

    @property
    def conditions(self) -> list[Condition]:
        """Of the prompt's gate, where it decides, and what is required."""
        gate = self.asked.prompt.evaluation.gate if self.baseline is not None else ()
        try:
            conditions = [Condition.model_validate(one) for one in gate]
        except ValidationError as error:
            said = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
            raise ValueError(f"{self.asked.named}: evaluation.gate: {said}") from error
        return [*conditions, *(one.condition for one in self.requirements)]


def check(session: Session, order: Order) -> list[str]:
    """What is known of the judge of each metric that one is wanted for, in words.

    Raises: ValueError for a metric that is none or wants a judge and has none; JudgeRefused where
        the gate or a requirement would rest on a judge that was not found good.
    """
    judge, lines, asked = order.client.judge, [], order.asked
    require_metrics(asked.prompt.evaluation.metrics, f"{asked.named}: evaluation.metrics")
    metrics = metrics_named(order.metrics, judge)
    if not metrics:
        raise ValueError(f"{order.asked.called}: it names no metrics; give some with --metrics")
    for metric in metrics:
        if metric.judged and judge is None:
            raise ValueError(f"{metric.name}: a model judges it; say which: --judge PROMPT@MODEL")
    require_calibrated(session, order.conditions, judge, f"{asked.named}: evaluation.gate")
    for metric in metrics:
        if metric.judged and judge is not None:
            verdict = calibration_of(session, metric.name, judge)
            known = "never calibrated" if verdict is None else verdict.reasons[0]
            lines.append(f"{metric.name} is judged by {judge.model}: {known}")
    return lines


def of_cases(order: Order, judges: Sequence[str], journal: Journal, say: Say) -> EvaluationReport:
    """Ask the golden cases.

    Raises: CasesUnreadable with file and line; StackTrouble.
    """
    prompt, name = order.asked.prompt, order.cases or order.asked.prompt.evaluation.cases
    if name is None:
        raise ValueError(f"{order.asked.called}: it names no golden cases; give some with --cases")
    path = golden_path(name)
    golden = load_golden(path)
    check_golden(prompt, golden)

    def evaluated(one: Asked) -> Evaluation:
        def said(what: str, done: int, total: int) -> None:
            say(f"{one.called}: {what}", done, total)

        found = evaluate_prompt(
            one.prompt, golden, order.client, metrics=order.metrics, journal=journal, say=said
        )
        require_answers(found, one.called)
        _require_any(found, one.called)
        return found

    candidate = evaluated(order.asked)
    evidence = {
        **_evidence(order),
        "file": path.name,
        "digest": key_of([one.row() for one in golden])[:DIGITS],
    }
    source = f"{len(golden)} golden cases of {path.name}"
    if order.baseline is None:
        verdict = by_itself(candidate, _subject(prompt), order.requirements, evidence)
        return EvaluationReport(order.asked.called, source, candidate, verdict, None, judges)
    base = evaluated(order.baseline)
    subject = order.asked.subject if order.no_label is None else _subject(prompt)
    verdict = beside(
        (subject, candidate), (order.baseline.subject, base), order.conditions, evidence
    )
    if order.no_label is not None:
        said = f"it decides no label: {order.no_label}"
        verdict = replace(verdict, reasons=(*verdict.reasons, said))
    compared = order.baseline.called, base
    return EvaluationReport(order.asked.called, source, candidate, verdict, compared, judges)


def _require_any(evaluation: Evaluation, called: str) -> None:
    """Raises StackTrouble where no case at all could be asked: there is nothing to measure."""
    errors = [answer.error for row in evaluation.answers for answer in row]
    if all(error is not None for error in errors):
        raise StackTrouble(f"{called}: not one answer came: {errors[0]}")


def require_answers(evaluation: Evaluation, called: str) -> None:
    """Raises StackTrouble where a case got no answer for another reason than the prompt's own."""
    answers = [answer for row in evaluation.answers for answer in row]
    failed = [
        answer.error
        for answer in answers
        if answer.error is not None
        and answer.case_id not in evaluation.lost
        and not REFUSED.search(answer.error)
    ]
    if failed:
        raise StackTrouble(
            f"{called}: {len(failed)} of {len(answers)} requests got no answer, so nothing was "
            f"judged; the same command asks for the rest: {failed[0]}"
        )


def of_window(
    order: Order,
    judges: Sequence[str],
    log: tuple[LogReader, Window],
    progress: tuple[Journal, Say],
) -> EvaluationReport:
    """Measure the answers that the log has; nothing is asked but judges."""
    (reader, window), (journal, say) = log, progress
    prompt = order.asked.prompt
    logged = evaluation_of(reader, prompt, window)
    metrics = metrics_named(order.metrics, order.client.judge)
    found = measured(logged, metrics, order.client, journal=journal, say=say)
    since = f"{window.since:%Y-%m-%d %H:%M} UTC"
    source = f"{len(found.cases)} logged requests since {since}"
    evidence = {**_evidence(order), "since": window.since.isoformat(), "most": window.most}
    subject = f"{SUBJECT}{prompt.name}/log" if window.version is None else f"{_subject(prompt)}/log"
    verdict = by_itself(found, subject, order.requirements, evidence)
    title = prompt.name if window.version is None else order.asked.called
    return EvaluationReport(f"{title} in live traffic", source, found, verdict, None, judges)


def keep(home: Path, report: EvaluationReport) -> Path:
    """Write the report into a folder of its own; the oldest ones of the prompt are removed."""
    verdict, name = report.verdict, report.evaluation.name
    place = home / "evaluations" / name
    folder = place / f"{verdict.created_at:%Y%m%dT%H%M%S}-{verdict.verdict_id}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    columns, rows = table_of(report)
    write_whole(folder / TABLE, orjson.dumps({"columns": columns, "data": rows}))
    write_whole(folder / TEXT, markdown(report))
    write_whole(folder / PAGE, page(report))
    for old in sorted(one for one in place.iterdir() if one.is_dir())[:-KEPT_REPORTS]:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    return folder


def settle(journal: Journal, report: EvaluationReport) -> str | None:
    """Forget what was paid for, unless something is to be asked again; says so."""
    sides = [report.evaluation, *([report.baseline[1]] if report.baseline else [])]
    answers = [one for side in sides for row in side.answers for one in row]
    failed = sum(one.error is not None for one in answers) if report.spoken else 0
    failed += sum(one.failed for one in report.summaries if metrics_named([one.name])[0].judged)
    if not failed:
        journal.finish()
        return None
    return (
        f"{failed} answers or judgements failed; what was paid for is kept for {MOST_HOURS} hours, "
        "so that the same command asks for the rest (--anew: for everything)"
    )


def _subject(prompt: Prompt) -> str:
    return f"{SUBJECT}{prompt.name}@{prompt.content_hash[:DIGITS]}"


def _evidence(order: Order) -> dict[str, Any]:
    judge = order.client.judge
    return {
        "prompt": order.asked.prompt.name,
        "content_hash": order.asked.prompt.content_hash,
        "called": order.asked.called,
        "model": order.asked.prompt.model,
        "metrics": list(dict.fromkeys(order.metrics)),
        **({} if judge is None else {"judge": f"{judge.prompt.name}@{judge.model}"}),
    }
