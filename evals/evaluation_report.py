"""The report of an evaluation: what was asked, what came out, and every answer in a table.

It is made once and shown as Markdown (`markdown`), as one HTML file (`evals.evaluation_page`) and
as a table in MLflow. Texts of live traffic are in none of them: a report outlives what is erased
from the log, whose rows the request ids name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from evals.evaluation import Evaluation
from evals.evaluation_verdict import Summary, summary_of
from evals.metrics import LACKING
from evals.records import Answer, Case, Decision, MetricResult, Verdict

SHOWN_REASONS = 3
LACKED = tuple(LACKING.values())
UNITS = {"latency": "ms", "cost": "USD"}


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """An evaluation that is done.

    Attributes:
        title: the prompt and its version.
        source: which cases they were.
        verdict: what was found.
        baseline: what it was compared with, and its name.
        judge: who judged, and whether gates believe it; a line for each metric that a model judged.
    """

    title: str
    source: str
    evaluation: Evaluation
    verdict: Verdict
    baseline: tuple[str, Evaluation] | None = None
    judge: Sequence[str] = ()

    @property
    def spoken(self) -> bool:
        """Whether texts may be shown: of golden cases, not of live traffic."""
        return self.evaluation.spoken

    @property
    def summaries(self) -> list[Summary]:
        """Of each metric, in order."""
        return [summary_of(self.evaluation, name) for name in self.evaluation.scores]

    @property
    def costs(self) -> float | None:
        """USD that the answers cost; None where nobody said."""
        known = [
            one.cost_usd
            for answers in self.evaluation.answers
            for one in answers
            if one.cost_usd is not None
        ]
        return sum(known) if known else None

    @property
    def worries(self) -> dict[str, int]:
        """Why answers failed or got no value, and how often; what is lacking is in the coverage."""
        found: dict[str, int] = {}
        for row in rows_of(self):
            for name, why in row.reasons.items():
                if row.values[name] is None and why not in (None, row.answer.error, *LACKED):
                    line = f"{name}: {why}"
                    found[line] = found.get(line, 0) + 1
            if row.answer.error is not None:
                line = f"no answer: {row.answer.error}"
                found[line] = found.get(line, 0) + 1
        return dict(sorted(found.items(), key=lambda one: -one[1]))


@dataclass(frozen=True, slots=True)
class Row:
    """One answer, and what was measured of it.

    Attributes:
        before: the baseline's values of the case; beside: its answer with the same seed.
    """

    case: Case
    answer: Answer
    values: Mapping[str, float | None]
    reasons: Mapping[str, str | None]
    before: Mapping[str, float | None]
    beside: Answer | None


def rows_of(report: EvaluationReport) -> Iterator[Row]:
    """Every answer, in the order of the cases."""
    evaluation = report.evaluation
    baseline = None if report.baseline is None else report.baseline[1]
    before = {} if baseline is None else {name: baseline.values(name) for name in baseline.scores}
    for place, (case, answers) in enumerate(zip(evaluation.cases, evaluation.answers, strict=True)):
        for seed, answer in enumerate(answers):
            scores = {name: rows[place][seed] for name, rows in evaluation.scores.items()}
            reasons = {name: score.reason for name, score in scores.items()}
            values = {name: score.value for name, score in scores.items()}
            known = {name: one[place] for name, one in before.items()}
            beside = None if baseline is None else baseline.answers[place][seed]
            yield Row(case, answer, values, reasons, known, beside)


def table_of(report: EvaluationReport) -> tuple[list[str], list[list[Any]]]:
    """Names of columns and rows, plain values: what MLflow and the page show."""
    names = list(report.evaluation.scores)
    texts = ["question", "expected", "reference", "contexts", "answer"] if report.spoken else []
    columns = ["case_id", *texts, *names, "reasons", "error", "request_id", "target"]
    return columns, [_cells(report, row, names) for row in rows_of(report)]


def _cells(report: EvaluationReport, row: Row, names: Sequence[str]) -> list[Any]:
    texts: list[Any] = []
    if report.spoken:
        case = row.case
        question = case.user_input or (str(case.messages[-1]["content"]) if case.messages else "")
        contexts = "\n\n".join(case.retrieved_contexts or ())
        texts = [question, plain(case.expected), case.reference, contexts, row.answer.text]
    why = "; ".join(f"{name}: {said}" for name, said in row.reasons.items() if said is not None)
    values = [row.values[name] for name in names]
    answer = row.answer
    return [row.case.case_id, *texts, *values, why, answer.error, answer.request_id, answer.target]


def plain(value: Any) -> str | None:
    """Anything expected, as text."""
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def markdown(report: EvaluationReport) -> str:
    """The report for terminals and comments."""
    verdict = report.verdict
    lines = [f"# Evaluation of {report.title}", "", f"{report.source}. {_spent(report)}", ""]
    if report.baseline is not None:
        lines += [f"Compared with {report.baseline[0]}.", ""]
    lines += [f"**{verdict.decision.value}** ({meaning(report)})", ""]
    lines += [*(f"- {reason}" for reason in verdict.reasons), ""]
    lines += [*_table(report), ""]
    lines += [f"- {line}" for line in report.judge]
    worries = report.worries
    if worries:
        lines += ["", "What went wrong:", ""]
        shown = list(worries.items())[:SHOWN_REASONS]
        lines += [f"- {count} times: {why}" for why, count in shown]
        if len(worries) > SHOWN_REASONS:
            lines.append(f"- {len(worries) - SHOWN_REASONS} other reasons; the table has them")
    return "\n".join(lines).rstrip() + "\n"


def meaning(report: EvaluationReport) -> str:
    """What the decision means."""
    held = "it stands by itself" if report.baseline is None else "too little is shown for the gate"
    return {
        Decision.PROMOTE: "the gate lets it through",
        Decision.REJECT: "the gate does not let it through",
        Decision.ALERT: "a requirement is broken",
        Decision.HOLD: held,
    }[report.verdict.decision]


def _spent(report: EvaluationReport) -> str:
    evaluation, cost = report.evaluation, report.costs
    answers = [one for row in evaluation.answers for one in row]
    failed = sum(one.error is not None for one in answers)
    said = f"{len(answers)} answers" + (f", {failed} of them failed" if failed else "")
    who = ", ".join(evaluation.targets) or evaluation.model
    price = "" if cost is None else f", {cost:.6f} USD"
    return f"{said}, by {who}{price}; measuring took {evaluation.seconds:.1f} s."


def _table(report: EvaluationReport) -> list[str]:
    compared = report.baseline is not None
    more = ["baseline", "difference"] if compared else []
    head = ["metric", "mean", "95 % interval", *more, "cases", "coverage"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    results = {one.name: one for one in report.verdict.metrics}
    for one in report.summaries:
        cells = [label(one.name), figure(one.mean), interval(one.low, one.high)]
        if compared:
            cells += _difference(results.get(one.name))
        coverage = f"{100 * one.coverage.share:.0f} %"
        lines.append(_line([*cells, str(one.n), coverage if one.applicable else "not applicable"]))
    return lines


def _difference(result: MetricResult | None) -> list[str]:
    if result is None or result.delta is None:
        return ["", ""]
    around = interval(result.ci_low, result.ci_high, signed=True)
    return [figure(result.baseline), f"{figure(result.delta, signed=True)} {around}".strip()]


def label(metric: str) -> str:
    """A metric's name with its unit, if it has one."""
    unit = UNITS.get(metric)
    return metric if unit is None else f"{metric} ({unit})"


def figure(value: float | None, *, signed: bool = False) -> str:
    """A number as people read it: four digits that count."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if abs(value) >= 1000:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:{sign}.7f}"


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """Both ends; empty where they are not known."""
    if low is None or high is None:
        return ""
    return f"[{figure(low, signed=signed)}, {figure(high, signed=signed)}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
