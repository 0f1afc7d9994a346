"""Evidently's HTML report of a look: each signal with its test, and the service levels.

The scores are measured once (`evals.signals`); Evidently is told them by a drift method of our own,
draws both distributions and tests each score against its limit. Characteristic words of texts are
in the report, whole texts are not: a report outlives what is erased from the log.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evals.comparison import Comparison
from evals.drift_verdict import Looked
from evals.records import Decision, Verdict
from evals.shifts import Shift
from evals.signals import Kind
from evals.slas import CLASSIFICATION, ERRORS, Kept, columns_as, metric_of
from evals.windows import Frame

METHOD = "calibrated"
DRAWN_TEXTS = 2_000  # a side
EXAMPLES = "characteristic examples"
REPORTS = "reports"
HEAD_STYLE = "font-family: sans-serif; font-size: 14px; margin: 16px 24px"


class NoReport(RuntimeError):
    """Evidently could not make the report; the message says why."""


def reported(home: Path, looked: Looked, moment: datetime, keep_days: int) -> Verdict:
    """The verdict of a look, with its report; without one it says why there is none."""
    verdict = looked.verdict(moment)
    path = report_path(home, verdict)
    try:
        write_report(path, looked, verdict)
    except NoReport as error:
        return replace(verdict, reasons=(*verdict.reasons, f"no report: {error}"))
    forget_reports(path, keep_days)
    return replace(verdict, evidence={**verdict.evidence, "report": str(path)})


def write_report(path: Path, looked: Looked, verdict: Verdict) -> None:
    """Write the HTML file, whole or not at all. Raises NoReport."""
    judged = [
        one
        for one in looked.kept
        if one.value is not None and one.sla.metric not in CLASSIFICATION  # a page of their own
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            snapshot = _run(looked.comparison, looked.shifts, judged)
            save(snapshot, path, _head(verdict, path))
        except (*ERRORS, OSError) as error:
            raise NoReport(f"{type(error).__name__}: {error}") from error


def save(snapshot: Any, path: Path, head: str = "") -> None:
    """Write a page of Evidently's, whole or not at all, with `head` before everything else."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.new")
    snapshot.save_html(str(fresh))
    fresh.write_text(fresh.read_text().replace("<body>", f"<body>{head}", 1))
    fresh.chmod(0o600)
    fresh.replace(path)


def outcomes_path(report: Path) -> Path:
    """Where the page on outcomes goes, beside the report of a look at predictions."""
    return report.with_name(f"outcomes-{report.name}")


def _head(verdict: Verdict, path: Path) -> str:
    """What the report is of, and what came of the look."""
    rows = verdict.evidence["window_rows"], verdict.evidence["reference_rows"]
    moment = verdict.created_at.isoformat(timespec="minutes")
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    known = verdict.evidence.get("outcomes", {}).get("known")
    more = f'<a href="{outcomes_path(path).name}">outcomes</a>' if known else ""
    return (
        f'<header style="{HEAD_STYLE}"><h1>{escape(verdict.subject)}: {verdict.decision.value}</h1>'
        f"<p>{moment}: {rows[0]:,} requests beside {rows[1]:,} of {escape(verdict.baseline)}; "
        f"verdict {escape(verdict.verdict_id)}</p><ul>{reasons}</ul>{more}</header>"
    )


def _run(comparison: Comparison, shifts: Sequence[Shift], kept: Sequence[Kept]) -> Any:
    from evidently import Dataset, Report

    kinds = comparison.by_name
    columns = {one.signal: kinds[one.signal].kind is Kind.LABEL for one in shifts}
    texts = [one.signal for one in shifts if kinds[one.signal].kind is Kind.TEXT]
    for column in _levelled(kept):
        columns.setdefault(column, comparison.window[column].dtype == object)
    definition = columns_as(columns, texts)
    reference, window = (
        Dataset.from_pandas(_side(comparison, index, shifts, kept), data_definition=definition)
        for index in (0, 1)
    )
    first = sorted(shifts, key=lambda one: not one.drifted)  # what has drifted is seen at once
    metrics = [_metric(shift) for shift in first] + [metric_of(one.sla) for one in kept]
    with _registered(shifts):
        snapshot = Report(metrics).run(window, reference)
    for widget in snapshot._widgets:
        if widget.tabs:
            widget.tabs = [tab for tab in widget.tabs if EXAMPLES not in tab.title]
    return snapshot


def _metric(shift: Shift) -> Any:
    from evidently.metrics import ValueDrift
    from evidently.tests import lte

    return ValueDrift(
        column=shift.signal, method=METHOD, threshold=shift.limit, tests=[lte(shift.limit)]
    )


@contextmanager
def _registered(shifts: Sequence[Shift]) -> Iterator[None]:
    """Make the measured scores a drift method of Evidently, and nothing else of it: what stays in
    its registry is kept to the process's end, with all that it refers to."""
    from evidently.legacy.calculations.stattests import registry
    from evidently.legacy.core import ColumnType

    known = {shift.signal: shift for shift in shifts}

    def measured(reference: Any, _window: Any, _kind: Any, _limit: float) -> tuple[float, bool]:
        shift = known[reference.name]
        return shift.score, shift.drifted

    kinds = [ColumnType.Text, ColumnType.Numerical, ColumnType.Categorical]
    method = registry.StatTest(METHOD, "at the level of this look", kinds)
    registry.register_stattest(method, measured)
    try:
        yield
    finally:
        del registry._impls[method]
        del registry._registered_stat_tests[METHOD]
        del registry._registered_stat_test_funcs[measured]


def _side(
    comparison: Comparison, index: int, shifts: Sequence[Shift], kept: Sequence[Kept]
) -> Frame:
    """The columns that are drawn, each as long as it is: what is missing is not there."""
    import pandas

    rows = (comparison.reference, comparison.window)[index]
    columns: dict[str, Any] = {one: rows[one].to_numpy() for one in _levelled(kept)}
    for shift in shifts:
        signal = comparison.by_name[shift.signal]
        if signal.kind is Kind.TEXT:
            texts = comparison.texts[signal.column][index].texts
            values = texts[:: -(-len(texts) // DRAWN_TEXTS)]
        elif shift.drawn is not None:
            values = shift.drawn[index]
        else:
            values = rows[signal.column].to_numpy()
        columns[shift.signal] = values
    return pandas.DataFrame({name: pandas.Series(values) for name, values in columns.items()})


def _levelled(kept: Sequence[Kept]) -> list[str]:
    """The columns that service levels are of."""
    return list(dict.fromkeys(column for one in kept for column in one.sla.columns))


def report_path(home: Path, verdict: Verdict) -> Path:
    """Where the report of a look goes."""
    moment = verdict.created_at.strftime("%Y%m%dT%H%M%S")
    name = f"{moment}-{verdict.verdict_id[-6:]}-{verdict.decision.value}.html"
    return home.absolute() / REPORTS / quote(verdict.subject, safe="@:") / name


def forget_reports(newest: Path, days: int) -> None:
    """Remove old reports beside `newest`; of looks that found nothing only the newest is kept."""
    oldest = time.time() - days * 86_400
    for path in newest.parent.glob("*.html"):
        uneventful = path.stem.endswith(Decision.HOLD.value)
        if path != newest and (uneventful or path.stat().st_mtime < oldest):
            path.unlink(missing_ok=True)
