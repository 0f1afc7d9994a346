"""How often a subject may be looked at without crying wolf: a budget of false alarms per month.

Each look at a subject is a test; a test that is repeated every hour finds something sooner or
later, where there is nothing. So a month's looks share one budget. A part of it is there from the
month's first moment, the rest comes in evenly with time. A look may use what has come in and is
not used yet: that is the chance of a false alarm it takes, divided among its signals. However
often, however irregularly and however much alike the looks are, their chances add up to no more
than the budget (Boole's inequality), as long as it is the clock that decides when to look, not
what was seen.

What was used stands in the verdicts, so it survives a restart, and looks by hand count too.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow

AT_ONCE = 0.1  # of the month's budget
LEVEL = "level"  # in a verdict's evidence


def month_start(moment: datetime) -> datetime:
    """The first moment of the month, UTC."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def come_in(alarms: float, moment: datetime) -> float:
    """How much of the budget `alarms` has come in by `moment`."""
    start = month_start(moment)
    end = month_start(start + timedelta(days=32))
    share = (moment - start) / (end - start)
    return alarms * (AT_ONCE + (1 - AT_ONCE) * share)


def level_now(session: Session, subject: str, alarms: float, moment: datetime) -> float:
    """The chance of a false alarm that a look at `subject` at `moment` may take."""
    return max(come_in(alarms, moment) - used(session, subject, moment), 0.0)


def used(session: Session, subject: str, moment: datetime) -> float:
    """What this month's verdicts on `subject` have used."""
    query = select(VerdictRow.evidence).where(
        VerdictRow.subject == subject, VerdictRow.created_at >= month_start(moment)
    )
    return sum(float(evidence.get(LEVEL) or 0.0) for evidence in session.scalars(query))
