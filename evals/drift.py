"""A look at a subject's traffic: the newest window beside the pinned reference, as a Verdict.

The window is every request since the last look, and at least `least_rows`, reaching back as far as
it takes; none is older than the reference or than `hours`. `alert`: a signal drifted, or a service
level is broken; those are judged without a reference, and on few rows, too. `hold`: nothing was
found, or it could not be told, and the reasons say which.

The chance of a false alarm that a look takes comes out of the subject's budget of the month
(`evals.spending`); a look that measures nothing takes none.
"""

from dataclasses import replace
from datetime import UTC, datetime

from evals.comparison import CODE, Comparison, Sampled, coded, measure, sample, too_few_users
from evals.drift_report import reported
from evals.drift_verdict import Looked, baseline_without, held
from evals.prediction_drift import look_at_predictions
from evals.records import Verdict
from evals.reference import NoReference, Reference, ReferenceDamaged, current
from evals.slas import judge_slas, slas_in_force
from evals.spending import level_now
from evals.vectors import Embedder, VectorsUnavailable
from evals.verdicts import add_verdict
from evals.watch import Watch, alone, looked_until
from evals.windows import Frame, Traffic, count_rows, read_window

TEXTS = ("question", "answer")


def look(watch: Watch, traffic: Traffic) -> Verdict:
    """Look at the traffic, and store the verdict. The moment of the look is that of its begin: what
    comes in meanwhile is for the next one.

    Raises: Conflict where a look at the same subject is under way.
    """
    with alone(watch.home / "run", traffic.subject):
        watch = replace(watch, moment=watch.now())
        verdict = (_look if traffic.predictions is None else look_at_predictions)(watch, traffic)
        with watch.database.transaction() as session:
            add_verdict(session, verdict)
    return verdict


def _look(watch: Watch, traffic: Traffic) -> Verdict:
    try:
        with watch.database.session() as session:
            reference, rows = current(watch.home, traffic.key, session)
    except (NoReference, ReferenceDamaged) as error:
        window, _ = _newest(watch, traffic, None)
        return _judged(watch, traffic, baseline_without(error), str(error), window)
    window, after = _newest(watch, traffic, reference)
    if window is None:
        return _judged(
            watch, traffic, reference.name, "no request came in since the look before", None
        )
    if len(window) < watch.plan.least_rows:
        since = datetime.fromtimestamp(after / 1_000_000, UTC).isoformat(timespec="minutes")
        said = f"too few requests: {len(window)} since {since}, needs {watch.plan.least_rows}"
        return _judged(watch, traffic, reference.name, said, window)
    return _compared(watch, traffic, reference, (rows, window))


def _newest(
    watch: Watch, traffic: Traffic, reference: Reference | None
) -> tuple[Frame | None, int]:
    """The window, and what it begins after; no window where nothing came in since the last one."""
    period = watch.period(reference.last if reference else 0)
    compared, judged = looked_until(watch, traffic.subject)

    def since(micros: int) -> int:
        later = replace(period, after=max(period.after, micros))
        return count_rows(watch.reader, traffic, later)

    if judged and not since(judged):
        return None, period.after
    fresh = since(compared if reference else judged)
    most = min(max(fresh, watch.plan.least_rows), watch.plan.most_rows)
    return read_window(watch.reader, traffic, replace(period, most=most)), period.after


def _judged(
    watch: Watch, traffic: Traffic, baseline: str, reason: str, window: Frame | None
) -> Verdict:
    """Nothing is compared, for `reason`; service levels are judged on what there is."""
    if window is None or window.empty:
        return held(traffic, baseline, reason, watch.now())
    kept = judge_slas(slas_in_force(watch.plan.slas), window)
    return held(traffic, baseline, reason, watch.now(), kept, int(window["ts"].iloc[-1]))


def _compared(
    watch: Watch, traffic: Traffic, reference: Reference, sides: tuple[Frame, Frame]
) -> Verdict:
    old, new = coded(*sides)
    few = too_few_users(old[CODE], new[CODE])
    comparison, missing = _comparison(watch if few is None else replace(watch, embedder=None),
                                      reference, (old, new))  # fmt: skip
    level = 0.0
    if few is None:
        with watch.database.session() as session:
            level = level_now(session, traffic.subject, watch.plan.alarms, watch.now())
    looked = Looked(
        traffic=traffic,
        reference=reference,
        comparison=comparison,
        level=level,
        found=measure(comparison, level, watch.plan.least) if level > 0 else [],
        kept=judge_slas(slas_in_force(watch.plan.slas), comparison.window),
        missing=missing if few is None else None,
        few=few,
    )
    return reported(watch.home, looked, watch.now(), watch.plan.keep_reports_days)


def _comparison(
    watch: Watch, reference: Reference, sides: tuple[Frame, Frame]
) -> tuple[Comparison, str | None]:
    """Both sides with their samples; and why there are no embeddings, if there are none."""
    old, new = sides
    # The reference's rows are the same at every look, so that their embeddings are cached.
    seeds = int(reference.sha256[:8], 16), int(new["ts"].iloc[-1]) % 2**32
    plan = watch.plan

    def sampled(most: int) -> dict[str, tuple[Sampled, Sampled]]:
        return {
            column: (sample(old, column, most, seeds[0]), sample(new, column, most, seeds[1]))
            for column in TEXTS
        }

    comparison = Comparison(old, new, sampled(plan.text_rows), seed=seeds[0])
    if watch.embedder is None:
        return comparison, "drift.vector_model names no model"
    try:
        vectors = {
            column: (_embedded(watch.embedder, pair[0]), _embedded(watch.embedder, pair[1]))
            for column, pair in sampled(plan.vector_rows).items()
        }
    except VectorsUnavailable as error:
        return comparison, str(error)
    return replace(comparison, vectors=vectors), None


def _embedded(embedder: Embedder, rows: Sampled) -> Sampled:
    return replace(rows, vectors=embedder.embed(rows.texts)) if len(rows) else rows
