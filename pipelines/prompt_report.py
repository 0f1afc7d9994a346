"""What people read of a comparison of prompts: figures, and the cases that flipped.

A case flips in a metric where one version is right (at least 0.5) and the other is not. `Report`
is what both forms show, the comment (`pipelines.prompt_comment`) and the page.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evals.compare import CONFIDENCE
from evals.gate import Condition
from evals.metrics import BOOKED
from evals.records import Answer, Case, MetricResult
from pipelines.prompt_change import shown
from pipelines.prompt_comparison import Comparison, Outcome

RIGHT = 0.5
LESS_IS_BETTER = frozenset(("refusal", "latency", "cost", "output_tokens"))
PAGE = Path(__file__).with_name("prompt_report.html")
UNITS: Mapping[str, str] = {"latency": "ms", "cost": "USD", "output_tokens": "tokens"}
PASSED: Mapping[bool | None, str] = {True: "met", False: "not met", None: "not shown"}


@dataclass(frozen=True, slots=True)
class Line:
    """A metric of both versions, as text. `condition` is empty where no gate asks for it."""

    metric: str
    base: str
    head: str
    delta: str
    interval: str
    n: int
    condition: str
    met: str
    result: MetricResult


@dataclass(frozen=True, slots=True)
class Flip:
    """A case that one version gets right and the other wrong."""

    case_id: str
    question: str
    expected: str
    base: str
    head: str
    worse: bool


@dataclass(frozen=True, slots=True)
class Flips:
    """The flipped cases of a metric, those that got worse first."""

    metric: str
    cases: tuple[Flip, ...]

    @property
    def worse(self) -> int:
        """How many got worse."""
        return sum(one.worse for one in self.cases)

    @property
    def better(self) -> int:
        """How many got better."""
        return len(self.cases) - self.worse


@dataclass(frozen=True, slots=True)
class Section:
    """One prompt of the report."""

    comparison: Comparison
    lines: tuple[Line, ...]
    flips: tuple[Flips, ...]

    @property
    def name(self) -> str:
        """The prompt's."""
        return self.comparison.change.name

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        return self.comparison.outcome

    @property
    def failed(self) -> bool:
        """Whether it must not be merged as it is."""
        return self.comparison.failed

    @property
    def asked(self) -> str:
        """Who answered how many requests, and what that cost."""
        sides = (("base", self.comparison.base), ("head", self.comparison.head))
        parts = []
        for side, found in sides:
            if found is not None:
                answers = [one for each in found.answers for one in each]
                who = ", ".join(f"{name} {count}" for name, count in found.targets.items())
                costs = [one.cost_usd for one in answers if one.cost_usd is not None]
                cost = f", {sum(costs):.3g} USD" if costs else ""
                parts.append(f"{side}: {len(answers)} answers ({who or 'nobody'}{cost})")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run.

    Attributes:
        base, head: what was compared, as people call it.
        notes: what is to be known of the run as a whole.
    """

    base: str
    head: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    made_at: datetime

    @property
    def failed(self) -> int:
        """How many prompts fail."""
        return sum(one.failed for one in self.sections)

    @property
    def title(self) -> str:
        """The run in a few words."""
        total = len(self.sections)
        if not total:
            return "Prompts: nothing changed"
        many = "1 changed prompt" if total == 1 else f"{total} changed prompts"
        fail = "fails" if self.failed == 1 else "fail"
        return (
            f"Prompts: {self.failed} of {many} {fail}"
            if self.failed
            else f"Prompts: {many}, passed"
        )


def section_of(comparison: Comparison) -> Section:
    """What is shown of a comparison."""
    return Section(comparison, tuple(_lines(comparison)), tuple(_flips(comparison)))


def plain(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "base": report.base,
        "head": report.head,
        "made_at": report.made_at.isoformat(),
        "failed": report.failed,
        "prompts": [
            {
                "name": one.name,
                "outcome": one.outcome.value,
                "failed": one.failed,
                "reasons": one.comparison.reasons,
                "notes": one.comparison.change.notes,
                "verdict": one.comparison.verdict and one.comparison.verdict.as_dict(),
            }
            for one in report.sections
        ],
    }


def page(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(PAGE.read_text()).render(report=report, bar=_bar)


def _lines(comparison: Comparison) -> Iterator[Line]:
    verdict, conditions = comparison.verdict, comparison.change.conditions
    if verdict is None:
        if comparison.head is not None:
            yield from (_alone(comparison, name) for name in comparison.change.metrics)
        return
    for place, result in enumerate(verdict.metrics):
        condition = conditions[place] if place < len(conditions) else None
        yield _line(result, condition)


def _line(result: MetricResult, condition: Condition | None) -> Line:
    confidence = CONFIDENCE if condition is None else condition.confidence
    known = result.ci_low is not None and result.ci_high is not None
    low, high = _figure(result.ci_low, True), _figure(result.ci_high, True)
    return Line(
        metric=_titled(result.name),
        base=_figure(result.baseline),
        head=_figure(result.candidate),
        delta=_figure(result.delta, True),
        interval=f"[{low}, {high}] ({100 * confidence:g} %)" if known else "",
        n=result.n,
        condition="" if condition is None else shown(condition).partition(" ")[2],
        met="" if condition is None else PASSED[result.passed],
        result=result,
    )


def _alone(comparison: Comparison, name: str) -> Line:
    assert comparison.head is not None
    values = comparison.head.known(name)
    mean = sum(values) / len(values) if values else None
    result = MetricResult(name, None, mean, None, None, None, len(values), None)
    return _line(result, None)


def _flips(comparison: Comparison) -> Iterator[Flips]:
    base, head = comparison.base, comparison.head
    if base is None or head is None:
        return
    less = LESS_IS_BETTER | {
        one.metric for one in comparison.change.conditions if one.direction == "decrease"
    }
    for metric in comparison.change.metrics:
        if metric in BOOKED:
            continue
        found = []
        sides = zip(base.values(metric), head.values(metric), strict=True)
        for place, (before, after) in enumerate(sides):
            right = [value is not None and value >= RIGHT for value in (before, after)]
            if right[0] != right[1] and not (before is None and after is None):
                case = head.cases[place]
                said = base.answers[place], head.answers[place]
                worse = right[0] != (metric in less)
                found.append(_flip(case, said, worse))
        if found:
            yield Flips(metric, tuple(sorted(found, key=lambda one: not one.worse)))


def _flip(case: Case, said: tuple[Sequence[Answer], Sequence[Answer]], worse: bool) -> Flip:
    """With the first seed whose answers differ."""
    pairs = list(zip(*said, strict=True))
    before, after = next((pair for pair in pairs if pair[0].text != pair[1].text), pairs[0])
    asked = str(case.messages[-1].get("content", "")) if case.messages else ""
    expected = case.reference if case.expected is None else case.expected
    return Flip(
        case_id=case.case_id,
        question=case.user_input or asked,
        expected=_text(expected),
        base=_answer(before),
        head=_answer(after),
        worse=worse,
    )


def _answer(answer: Answer) -> str:
    return answer.text if answer.error is None else f"(no answer: {answer.error})"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _titled(metric: str) -> str:
    return f"{metric} ({UNITS[metric]})" if metric in UNITS else metric


def _figure(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if abs(value) >= 100:
        return f"{value:{sign}.1f}"
    if abs(value) >= 1:
        return f"{value:{sign}.2f}"
    return f"{value:{sign}.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:{sign}.2g}"


def _bar(result: MetricResult) -> dict[str, float] | None:
    """Where zero, interval and difference lie on a line from 0 to 100; None without an interval."""
    if result.ci_low is None or result.ci_high is None or result.delta is None:
        return None
    widest = max(abs(result.ci_low), abs(result.ci_high)) * 1.05 or 1.0
    places = {"low": result.ci_low, "high": result.ci_high, "delta": result.delta}
    return {name: 50 + 50 * value / widest for name, value in places.items()}
