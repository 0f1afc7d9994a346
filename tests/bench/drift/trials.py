"""One trial each: a month without drift, a first window with drift, and looks until it is found.

What decides is what decides in production: the level comes out of the subject's budget in a state
database, `measure` compares, and the verdict says `alert` or not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from evals.comparison import measure
from evals.drift_plan import DriftPlan
from evals.drift_verdict import Looked, held
from evals.records import Decision, Verdict
from evals.reference import Reference
from evals.spending import LEVEL, come_in, level_now
from evals.verdicts import add_verdict
from evals.windows import Traffic as Subject
from gateway.database import Database
from tests.bench.drift.pool import Pool
from tests.bench.drift.traffic import CHANGES, STEADY, Change, Rows, Traffic, Windows

Array = Any
Result = Mapping[str, Any]

MONTH = datetime(2026, 4, 1, tzinfo=UTC)  # thirty days
DAYS = 30
MIDDLE = MONTH + timedelta(days=15)
LOOKS_AT_MOST = 20
FEW_AXES = 128  # of the embeddings, in the simulated months
REFERENCE = Reference("study", "", "0" * 64, 0, 0, 0, "", "study")


@dataclass(frozen=True, slots=True)
class Terms:
    """What all trials share.

    Attributes:
        hours: between looks.
        per_day: requests a day, for the time to detection.
        month_reference, reference: rows of the reference in months, and in the other trials.
        window: rows of a first window.
    """

    plan: DriftPlan = field(default_factory=DriftPlan)
    hours: float = 24
    per_day: int = 1000
    month_reference: int = 600
    reference: int = 2000
    window: int = 500


class Study:
    """Everything that a trial needs; each trial draws from its own seed."""

    def __init__(self, pool: Pool, database: Database, terms: Terms):
        self._pool = pool
        self._database = database
        self._terms = terms
        self._whole = Windows(pool, pool.vectors)
        self._reduced = Windows(pool, {side: _few(one) for side, one in pool.vectors.items()})

    def month(self, seed: int) -> Result:
        """A month of regular looks at steady traffic."""
        traffic = Traffic(self._pool, np.random.default_rng([1, seed]))
        reference = traffic.draw(self._terms.month_reference, STEADY)
        subject = Subject(model=f"month-{self._terms.hours:g}-{seed}")
        alarms, looks = [], int(DAYS * 24 / self._terms.hours)
        for number in range(looks):
            window = traffic.draw(self._terms.window, STEADY)
            moment = MONTH + timedelta(hours=number * self._terms.hours)
            verdict = self._look(self._reduced, subject, (reference, window), moment, seed)
            alarms += [[number, name] for name in _failed(verdict)]
        with self._database.session() as session:
            left = level_now(session, subject.subject, self._terms.plan.alarms, moment)
        return {"looks": looks, "alarms": alarms, "left": left}

    def power(self, seed: int, change: Change) -> Result:
        """The first whole window with drift, at a regular look in the middle of a month."""
        traffic = Traffic(self._pool, np.random.default_rng([2, seed, _number(change)]))
        reference = traffic.apart(self._terms.reference)
        window = traffic.draw(self._terms.window, change)
        subject = Subject(model=f"power-{_number(change)}-{seed}")
        self._spend(subject)
        verdict = self._look(self._whole, subject, (reference, window), MIDDLE, seed)
        return {"found": _failed(verdict), "level": verdict.evidence[LEVEL]}

    def time(self, seed: int, change: Change) -> Result:
        """Regular looks from the moment that the traffic changes, until one finds it."""
        random = np.random.default_rng([3, seed, _number(change)])
        traffic = Traffic(self._pool, random)
        reference = traffic.apart(self._terms.reference)
        fresh = round(self._terms.per_day * self._terms.hours / 24)
        wanted = max(fresh, self._terms.plan.least_rows)
        steady = int(random.integers(fresh))  # requests of the first interval before the change
        rows = traffic.draw(wanted, STEADY).and_then(traffic.draw(steady, STEADY))
        subject = Subject(model=f"time-{self._terms.hours:g}-{_number(change)}-{seed}")
        self._spend(subject)
        since, found = 0, list[str]()
        for number in range(LOOKS_AT_MOST):
            drifted = fresh - steady if number == 0 else fresh
            since += drifted
            rows = rows.and_then(traffic.draw(drifted, change)).last(wanted)
            moment = MIDDLE + timedelta(hours=number * self._terms.hours)
            verdict = self._look(self._whole, subject, (reference, rows), moment, seed)
            found = _failed(verdict)
            if found:
                break
        hours = since / self._terms.per_day * 24
        return {"requests": since, "hours": hours, "found": found}

    def _spend(self, subject: Subject) -> None:
        """As if there had been regular looks from the month's first moment on."""
        before = MIDDLE - timedelta(hours=self._terms.hours)
        verdict = held(subject, REFERENCE.name, "looks before", before)
        spent = {LEVEL: come_in(self._terms.plan.alarms, before)}
        with self._database.transaction() as session:
            add_verdict(session, replace(verdict, evidence=spent))

    def _look(
        self, windows: Windows, subject: Subject, sides: tuple[Rows, Rows], moment: datetime,
        seed: int,
    ) -> Verdict:  # fmt: skip
        plan = self._terms.plan
        micros = int(moment.timestamp()) * 1_000_000
        tables = [windows.frame(sides[0], 0), windows.frame(sides[1], micros)]
        comparison = windows.comparison(list(zip(sides, tables, strict=True)), seed)
        with self._database.transaction() as session:
            level = level_now(session, subject.subject, plan.alarms, moment)
            found = measure(comparison, level, plan.least)
            looked = Looked(subject, REFERENCE, comparison, level, found, [], None)
            verdict = looked.verdict(moment)
            add_verdict(session, verdict)
        return verdict


def kinds(study: Study) -> Mapping[str, Callable[[int, Change], Result]]:
    """Trials by their name."""
    return {"month": lambda seed, _change: study.month(seed), "power": study.power,
            "time": study.time}  # fmt: skip


def _failed(verdict: Verdict) -> list[str]:
    failed = [one.name for one in verdict.metrics if one.passed is False]
    assert bool(failed) == (verdict.decision is Decision.ALERT)
    return failed


def _number(change: Change) -> int:
    return CHANGES.index(change)


def _few(vectors: Array) -> Array:
    """The same along their foremost axes, not centred, so that angles stay nearly as they are."""
    whole = vectors.astype("float32")
    _, axes = np.linalg.eigh(whole.T @ whole)
    return (whole @ axes[:, ::-1][:, :FEW_AXES]).astype("float16")
