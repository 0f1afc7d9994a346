"""The report of an evaluation as one HTML file: nothing in it is fetched from anywhere."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from evals.compare import is_binary
from evals.evaluation_report import (
    EvaluationReport,
    Row,
    figure,
    interval,
    label,
    markdown,
    meaning,
    plain,
    rows_of,
)
from evals.evaluation_verdict import Summary
from evals.records import MetricResult

BINS = 16
WIDTH, HEIGHT = 176, 40
SHOWN_CHARACTERS = 4_000  # of a text
BOOKED = ("latency", "cost", "output_tokens")  # in which no value is a good or a bad one
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --blue: #2f6fb5; --red: #b3312f }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
.quiet { opacity: .7 } .badge { border-radius: .3rem; color: #fff; padding: .1rem .55rem }
.promote { background: #237a3b } .hold { background: #666 } .reject, .alert { background: #b3312f }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: right;
  vertical-align: top }
th { font-weight: 600; position: sticky; top: 0; background: Canvas } .cases th { cursor: pointer }
th:first-child, td:first-child, .text { text-align: left }
.cases td { white-space: nowrap } .cases .text { white-space: normal }
.cases .text { min-width: 26rem; max-width: 40rem }
summary { cursor: pointer; overflow-wrap: anywhere }
td.bad { color: var(--red); font-weight: 600 }
dl { margin: .4rem 0; overflow-wrap: anywhere } dt { font-weight: 600; font-size: .85rem }
dd { margin: 0 0 .4rem; white-space: pre-wrap } svg { display: block }
.bar { fill: var(--blue) } .axis { stroke: var(--line) }
.tick { font-size: 10px; fill: currentColor }
.whisker { margin-left: auto } .whisker circle { fill: currentColor }
.span { stroke: currentColor; stroke-width: 1.5 }
.wide { overflow-x: auto } .up { color: #237a3b } .down { color: var(--red) }
"""
SORT = """
for (const head of document.querySelectorAll('.cases th')) head.onclick = () => {
  const body = head.closest('table').tBodies[0], place = head.cellIndex;
  const way = head.dataset.way = head.dataset.way === '1' ? '-1' : '1';
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const order = (a, b) => a === '' || b === '' ? (a === '') - (b === '')
    : way * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((one, other) => order(key(one), key(other))));
};
"""


def page(report: EvaluationReport) -> str:
    """The whole file."""
    verdict = report.verdict
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    judges = "".join(f"<li>{escape(line)}</li>" for line in report.judge)
    spent = markdown(report).splitlines()[2]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(report.title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{STYLE}</style>",
        f"<h1>Evaluation of {escape(report.title)}</h1>",
        f'<p class="quiet">{escape(spent)} {verdict.created_at:%Y-%m-%d %H:%M} UTC</p>',
        f'<p><span class="badge {verdict.decision.value}">{verdict.decision.value}</span> '
        f"{escape(meaning(report))}{_beside(report)}</p>",
        f"<ul>{reasons}</ul>",
        "<h2>Metrics</h2>",
        *_metrics(report),
        f"<ul>{judges}</ul>" if judges else "",
        *_worries(report),
        "<h2>Answers</h2>",
        '<p class="quiet">A click on a column sorts by it; a click on an answer opens it.</p>'
        if report.spoken
        else '<p class="quiet">Live traffic: the texts are in the log, by request id '
        "(llmops logs show ID).</p>",
        *_answers(report),
        f'<p class="quiet">Verdict {verdict.verdict_id} on {escape(verdict.subject)}; prompt '
        f"{report.evaluation.content_hash[:12]}.</p>",
        f"<script>{SORT}</script></html>",
    ]
    return "\n".join(parts) + "\n"


def _beside(report: EvaluationReport) -> str:
    return "" if report.baseline is None else f"; compared with {escape(report.baseline[0])}"


def _metrics(report: EvaluationReport) -> Iterator[str]:
    compared = report.baseline is not None
    more = "<th>baseline<th>difference" if compared else ""
    yield f"<table><thead><tr><th>metric<th>mean<th>95 % interval{more}<th>cases<th>coverage"
    yield '<th class="text">distribution</thead><tbody>'
    results = {one.name: one for one in report.verdict.metrics}
    for one in report.summaries:
        cells = [label(one.name), figure(one.mean), interval(one.low, one.high)]
        coverage = f"{100 * one.coverage.share:.0f} %" if one.applicable else "not applicable"
        yield f"<tr>{''.join(f'<td>{escape(cell)}' for cell in cells)}"
        if compared:
            yield _difference(results.get(one.name))
        yield f"<td>{one.n}<td>{coverage}<td>{_histogram(report, one)}"
    yield "</tbody></table>"


def _difference(result: MetricResult | None) -> str:
    if result is None or result.delta is None:
        return "<td><td>"
    around = interval(result.ci_low, result.ci_high, signed=True)
    shown = f"{figure(result.delta, signed=True)} {around}"
    style = {True: "up", False: "down", None: ""}[result.passed]
    return f'<td>{figure(result.baseline)}<td class="{style}">{escape(shown)}{_whisker(result)}'


def _whisker(result: MetricResult) -> str:
    """The interval of a difference, with zero in the middle."""
    low, high, delta = result.ci_low, result.ci_high, result.delta
    if low is None or high is None or delta is None:
        return ""
    widest, half, middle = max(abs(low), abs(high)) or 1.0, WIDTH / 2 - 4, WIDTH / 2
    left, at, right = (middle + half * one / widest for one in (low, delta, high))
    return (
        f'<svg class="whisker" width="{WIDTH}" height="14" role="img" aria-label="interval">'
        f'<line class="axis" x1="{middle}" x2="{middle}" y2="14"/>'
        f'<line class="span" x1="{left:.1f}" x2="{right:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{at:.1f}" cy="7" r="3"/></svg>'
    )


def _histogram(report: EvaluationReport, summary: Summary) -> str:
    values = report.evaluation.known(summary.name)
    if not values or not summary.applicable:
        return ""
    counts, low, high = binned(values, share=summary.name not in BOOKED)
    tallest, step = max(counts), WIDTH / len(counts)
    drawn = [
        f'<rect class="bar" x="{place * step + 1:.1f}" width="{step - 2:.1f}" '
        f'y="{HEIGHT - count / tallest * HEIGHT:.1f}" height="{count / tallest * HEIGHT:.1f}">'
        f"<title>{count}</title></rect>"
        for place, count in enumerate(counts)
        if count
    ]
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT + 14}" role="img" aria-label="distribution of '
        f'{escape(summary.name)}"><line class="axis" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>'
        f'{"".join(drawn)}<text class="tick" y="{HEIGHT + 11}">{figure(low)}</text>'
        f'<text class="tick" x="{WIDTH}" y="{HEIGHT + 11}" text-anchor="end">{figure(high)}</text>'
        "</svg>"
    )


def binned(values: Sequence[float], *, share: bool) -> tuple[list[int], float, float]:
    """How many values lie in each of equal parts of their range, and its ends.

    A `share` has the range from 0 to 1, zeros and ones a part each.
    """
    low, high = (0.0, 1.0) if share else (min(values), max(values))
    number = 2 if share and is_binary(values) else BINS
    counts = [0] * number
    for value in values:
        place = 0 if high == low else int((value - low) / (high - low) * number)
        counts[min(place, number - 1)] += 1
    return counts, low, high


def _worries(report: EvaluationReport) -> Iterator[str]:
    worries = report.worries
    if worries:
        yield "<h2>What went wrong</h2><table><tbody>"
        for why, count in worries.items():
            yield f'<tr><td>{count} times<td class="text" style="max-width:none">{escape(why)}'
        yield "</tbody></table>"


def _answers(report: EvaluationReport) -> Iterator[str]:
    names = list(report.evaluation.scores)
    yield '<div class="wide"><table class="cases"><thead><tr><th>case'
    yield '<th class="text">answer' if report.spoken else "<th>request"
    yield f"{''.join(f'<th>{escape(label(name))}' for name in names)}</thead><tbody>"
    for row in rows_of(report):
        shown = _opened(row) if report.spoken else escape(row.answer.request_id or "")
        yield f'<tr><td>{escape(row.case.case_id)}<td class="text">{shown}'
        yield "".join(_value(row, name) for name in names)
    yield "</tbody></table></div>"


def _value(row: Row, name: str) -> str:
    value, before = row.values[name], row.before.get(name)
    shown = figure(value)
    if before is not None and value is not None and before != value and name not in BOOKED:
        shown = f"{figure(before)} → {shown}"
    style = ' class="bad"' if value == 0 and name not in (*BOOKED, "refusal") else ""
    title = f' title="{escape(row.reasons[name] or "")}"' if row.reasons[name] else ""
    data = "" if value is None else f"{value:.9g}"
    return f'<td{style}{title} data-value="{data}">{escape(shown)}'


def _opened(row: Row) -> str:
    """The answer, and all that is known of it when it is opened."""
    case, answer = row.case, row.answer
    said = answer.text or (f"({answer.error})" if answer.error else "(empty)")
    messages = "\n\n".join(f"[{one['role']}] {one['content']}" for one in case.messages)
    known: list[tuple[str, Any]] = [
        ("answer", answer.text),
        ("answer of the baseline", row.beside.text if row.beside else None),
        ("error", answer.error),
        ("expected", plain(case.expected)),
        ("reference", case.reference),
        *((f"{name}", why) for name, why in row.reasons.items() if why),
        ("messages", messages),
        ("request", answer.request_id),
    ]
    listed = "".join(
        f"<dt>{escape(name)}<dd>{escape(str(text)[:SHOWN_CHARACTERS])}"
        for name, text in known
        if text
    )
    first = said if len(said) <= 160 else said[:159] + "…"
    return f"<details><summary>{escape(first)}</summary><dl>{listed}</dl></details>"
