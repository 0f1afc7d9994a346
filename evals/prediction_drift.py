"""A look at an alias's predictions: data, predictions and outcomes beside the champion's reference.

The window is every prediction of the champion since the last look, and the newest blocks of time
(`predictions.blocks`) at least. Outcomes come late: they are judged on predictions that are older
than `predictions.label_after`, those that became so old or whose outcome was heard of since the
last look, and the newest such blocks at least; predictions without an outcome are left out there.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.comparison import Comparison
from evals.drift_report import NoReport, reported
from evals.drift_verdict import Looked, baseline_without, held
from evals.prediction_plan import Predictions
from evals.prediction_reference import current_predictions
from evals.prediction_report import write_outcomes
from evals.prediction_signals import measure_predictions, signals_of
from evals.prediction_slas import judge_prediction_slas
from evals.prediction_window import (
    BLOCK,
    ERROR,
    LABEL,
    LABELLED_AT,
    OUTCOME,
    PROBABILITY,
    RECENT,
    labelled,
    prepared,
    read_predictions,
)
from evals.records import Verdict
from evals.reference import NoReference, Reference, ReferenceDamaged
from evals.shifts import Shift
from evals.spending import level_now
from evals.watch import Watch, looked_at, looked_until, micros
from evals.windows import Frame, Traffic


def look_at_predictions(watch: Watch, traffic: Traffic) -> Verdict:
    """Look, without storing the verdict."""
    try:
        reference, rows = current_predictions(watch, traffic)
    except (NoReference, ReferenceDamaged) as error:
        baseline, said = baseline_without(error), str(error)
        window, _ = _window(watch, traffic, None)
        return _judged(watch, traffic, baseline, said, window)
    window, outcomes = _window(watch, traffic, reference)
    if window.empty:
        said = "no prediction was made and no outcome heard of since the look before"
        return _judged(watch, traffic, reference.name, said, window)
    recent = int(window[RECENT].sum())
    if recent < watch.plan.least_rows:
        said = f"too few predictions: {recent}, needs {watch.plan.least_rows}"
        return _judged(watch, traffic, reference.name, said, window)
    return _compared(watch, traffic, reference, (rows, window), outcomes)


def _window(
    watch: Watch, traffic: Traffic, reference: Reference | None
) -> tuple[Frame, dict[str, Any]]:
    """The rows since the last look and of the newest blocks, with what is known of their outcomes;
    none where nothing is new."""
    plan = traffic.predictions or Predictions()
    compared, judged = looked_until(watch, traffic.subject)
    about = reference.about if reference else {}
    version = reference.version if reference else watch.champion(traffic.model or "")
    asked = replace(traffic, version=version, time=about.get("time"))
    metric = plan.label or about.get("label")
    frame = read_predictions(watch.reader, asked, watch.period(reference.last if reference else 0))
    if metric is None:
        frame = frame.assign(**{LABEL: float("nan"), LABELLED_AT: float("nan")})
    else:
        frame = labelled(frame, watch.database, metric)
    frame = prepared(frame, plan.block)
    settles = frame["ts"] + int(plan.label_after * 1_000_000)
    settled = settles <= micros(watch.now())
    known = settled & frame[LABEL].notna()
    heard = frame[LABELLED_AT].clip(lower=settles)  # one that came early counts once it may
    heard_of = known & (heard > looked_at(watch, traffic.subject))
    if not ((frame["ts"] > max(compared, judged)) | heard_of).any():
        return frame.iloc[:0], {}
    since = compared if reference else judged
    recent = (frame["ts"] > since) | _in_last(frame[BLOCK], frame[BLOCK], plan.blocks)
    judges = heard_of | (known & _in_last(frame[BLOCK], frame[BLOCK][known], plan.blocks))
    outcomes = _outcomes(metric, frame[settled & frame[PROBABILITY].notna()])
    frame = frame.assign(
        **{
            RECENT: recent,
            **{name: frame[name].where(judges) for name in (LABEL, ERROR, OUTCOME)},
        }
    )
    return frame[recent | judges].reset_index(drop=True), outcomes


def _in_last(blocks: Frame, among: Frame, most: int) -> Frame:
    """Which rows are in the newest `most` blocks of `among`."""
    return blocks.isin(sorted(among.unique())[-most:])


def _outcomes(metric: str | None, settled: Frame) -> dict[str, Any]:
    """How many of the predictions that are old enough have an outcome, and how late it came."""
    known = settled[settled[LABEL].notna()]
    late = (known[LABELLED_AT] - known["ts"]) / 1_000_000
    return {
        "label": metric,
        "predictions": len(settled),
        "known": len(known),
        "median_delay_seconds": float(late.median()) if len(known) else None,
    }


def _told(outcomes: dict[str, Any]) -> str:
    if outcomes["label"] is None:
        return "outcomes: no feedback metric is named as their label"
    said = f"outcomes: {outcomes['known']} of {outcomes['predictions']} predictions have one"
    delay = outcomes["median_delay_seconds"]
    return said if delay is None else f"{said}, half of them within {delay / 3600:.3g} h"


def _limits(watch: Watch, traffic: Traffic) -> dict[str, float | None]:
    plan = traffic.predictions or Predictions()
    return {**watch.plan.slas, **plan.slas}


def _judged(watch: Watch, traffic: Traffic, baseline: str, reason: str, window: Frame) -> Verdict:
    """Nothing is compared, for `reason`; service levels are judged on what there is."""
    if window.empty:
        return held(traffic, baseline, reason, watch.now())
    kept = judge_prediction_slas(_limits(watch, traffic), window)
    return held(traffic, baseline, reason, watch.now(), kept, int(window["ts"].max()))


def _compared(
    watch: Watch,
    traffic: Traffic,
    reference: Reference,
    sides: tuple[Frame, Frame],
    outcomes: dict[str, Any],
) -> Verdict:
    plan = traffic.predictions or Predictions()
    window = sides[1]
    old = prepared(sides[0], plan.block)
    columns = window.columns.union(old.columns, sort=False)
    old, window = old.reindex(columns=columns), window.reindex(columns=columns)
    comparison = Comparison(
        old, window, {}, seed=int(reference.sha256[:8], 16), signals=signals_of(old, window)
    )
    with watch.database.session() as session:
        level = level_now(session, traffic.subject, watch.plan.alarms, watch.now())
    found = measure_predictions(comparison, level, watch.plan.least) if level > 0 else []
    measured = any(isinstance(one, Shift) for one in found)
    looked = Looked(
        traffic=traffic,
        reference=reference,
        comparison=comparison,
        level=level if measured else 0.0,
        found=found,
        kept=judge_prediction_slas(_limits(watch, traffic), window, old),
        missing=None,
        few=None if measured or level <= 0 else "none has values enough",
        notes=(_told(outcomes),),
        facts={"version": reference.version, "outcomes": outcomes, **reference.about},
    )
    verdict = reported(watch.home, looked, watch.now(), watch.plan.keep_reports_days)
    if not outcomes["known"] or "report" not in verdict.evidence:
        return verdict
    try:
        write_outcomes(Path(verdict.evidence["report"]), comparison, looked.kept)
    except NoReport as error:
        said = f"no page on outcomes: {error}"
        return replace(verdict, reasons=(*verdict.reasons, said))
    return verdict
