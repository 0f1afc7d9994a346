"""A look at a subject's traffic: the newest window beside the pinned reference, as a Verdict.

The window is every request since the last look, and at least `least_rows`, reaching back as far as
it takes; none is older than the reference or than `hours`. `alert`: a signal drifted, or a service
level is broken; those are judged without a reference, and on few rows, too. `hold`: nothing was
found, or it could not be told, and the reasons say which.

The chance of a false alarm that a look takes comes out of the subject's budget of the month
(`evals.spending`); a look that measures nothing takes none.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import select

from evals.comparison import CODE, Comparison, Sampled, coded, measure, sample, too_few_users
from evals.drift_plan import DriftPlan, Watched
from evals.drift_report import NoReport, forget_reports, report_path, write_report
from evals.drift_verdict import JUDGED, UNTIL, Looked, held
from evals.records import Verdict
from evals.reference import NoReference, Reference, ReferenceDamaged, current
from evals.slas import judge_slas, slas_in_force
from evals.spending import level_now
from evals.vectors import Embedder, VectorsUnavailable
from evals.verdicts import VerdictRow, add_verdict
from evals.windows import (
    Frame,
    Period,
    Traffic,
    count_rows,
    found_in,
    read_window,
    tenants_of,
)
from gateway.database import Conflict, Database, now
from gateway.request_log import LogReader
from prompts.library import BadPromptFile, load_library

TEXTS = ("question", "answer")
NONE, DAMAGED = "none", "damaged"  # baselines of looks that had nothing to compare with


@dataclass(frozen=True, slots=True)
class Watch:
    """What a look works with.

    Attributes:
        embedder: None leaves embeddings out.
        moment: when the look is; now by default.
    """

    home: Path
    reader: LogReader
    database: Database
    plan: DriftPlan
    embedder: Embedder | None = None
    moment: datetime | None = None

    def now(self) -> datetime:
        """The moment of the look."""
        return self.moment or now()

    def period(self, after: int) -> Period:
        """From `after`, or as far back as a window reaches, until now."""
        moment = self.now()
        oldest = _micros(moment - timedelta(hours=self.plan.hours))
        return Period(max(oldest, after), _micros(moment), self.plan.most_rows)


def traffics(watch: Watch, watched: Watched, tenant: str | None = None) -> list[Traffic]:
    """An entry of the plan taken apart: by tenant if it says so, and by the prompt's versions.
    With `tenant`, its traffic alone."""
    whole = traffic_of(watched)
    period = watch.period(0)
    parts = [replace(whole, tenant=tenant)]
    if watched.tenants == "each" and tenant is None:
        found = tenants_of(watch.reader, whole, period)
        parts = [replace(whole, tenant=tenant) for tenant in found]
    return [one for part in parts for one in found_in(watch.reader, part, period) or [part]]


def traffic_of(watched: Watched) -> Traffic:
    """All of an entry's traffic together."""
    fields = _fields(watched.prompt)
    return Traffic(
        prompt=watched.prompt,
        model=watched.model,
        question=watched.question or fields.get("user_input"),
        passages=watched.passages or fields.get("retrieved_contexts"),
    )


def look(watch: Watch, traffic: Traffic) -> Verdict:
    """Look at the traffic, and store the verdict.

    Raises: Conflict where a look at the same subject is under way.
    """
    with _alone(watch.home / "run", traffic.subject):
        verdict = _look(watch, traffic)
        with watch.database.transaction() as session:
            add_verdict(session, verdict)
    return verdict


def _look(watch: Watch, traffic: Traffic) -> Verdict:
    try:
        with watch.database.session() as session:
            reference, rows = current(watch.home, traffic.key, session)
    except (NoReference, ReferenceDamaged) as error:
        baseline = NONE if isinstance(error, NoReference) else DAMAGED
        window, _ = _newest(watch, traffic, None)
        return _judged(watch, traffic, baseline, str(error), window)
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
    compared, judged = _looked_until(watch, traffic.subject)

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
    verdict = looked.verdict(watch.now())
    path = report_path(watch.home, verdict)
    try:
        write_report(path, looked, verdict)
    except NoReport as error:
        return replace(verdict, reasons=(*verdict.reasons, f"no report: {error}"))
    forget_reports(path, watch.plan.keep_reports_days)
    return replace(verdict, evidence={**verdict.evidence, "report": str(path)})


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


def _looked_until(watch: Watch, subject: str) -> tuple[int, int]:
    """The end of the newest window that was compared, and of the newest whose service levels were
    judged; 0 if there was none."""
    judged = 0
    query = select(VerdictRow.evidence).where(VerdictRow.subject == subject)
    with watch.database.session() as session:
        for evidence in session.scalars(query.order_by(VerdictRow.verdict_id.desc()).limit(1000)):
            judged = judged or int(evidence.get(JUDGED) or 0)
            if evidence.get(UNTIL):
                return int(evidence[UNTIL]), max(int(evidence[UNTIL]), judged)
    return 0, judged


def _fields(prompt: str | None) -> dict[str, str]:
    """Which variables of a prompt are what, as its file in the library says."""
    if prompt is None:
        return {}
    try:
        found = load_library().get(prompt)
    except (BadPromptFile, OSError):
        return {}
    return dict(found.evaluation.fields) if found is not None else {}


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


@contextmanager
def _alone(run: Path, subject: str) -> Iterator[None]:
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / f"{quote(subject, safe='')}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"a look at {subject} is under way") from None
        yield
