"""The budget of false alarms: no order of looks spends more than a month's."""

from datetime import UTC, datetime, timedelta

import pytest
import uuid_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.migrations import upgrade
from evals.records import Decision, Verdict
from evals.spending import LEVEL, come_in, level_now, month_start, used
from evals.verdicts import add_verdict
from gateway.database import Database, open_database

ALARMS = 0.05
MONTH = datetime(2026, 4, 1, tzinfo=UTC)
MOMENTS = st.lists(st.floats(0, 29.99), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory):
    url = f"sqlite:///{tmp_path_factory.mktemp('state') / 'state.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


def looked(database: Database, subject: str, moment: datetime) -> float:
    """A look that uses what it may; returns how much that was."""
    with database.transaction() as session:
        level = level_now(session, subject, ALARMS, moment)
        evidence = {LEVEL: level}
        verdict = Verdict(
            str(uuid_utils.uuid7()), subject, "r", Decision.HOLD, (), (), evidence, moment
        )
        add_verdict(session, verdict)
    return level


@settings(max_examples=25, deadline=None)
@given(days=MOMENTS)
def test_no_looks_spend_more_than_the_budget(database, days):
    subject = f"drift:{uuid_utils.uuid7()}"
    spent = [looked(database, subject, MONTH + timedelta(days=day)) for day in sorted(days)]
    assert all(level >= 0 for level in spent)
    assert sum(spent) <= ALARMS + 1e-12
    assert sum(spent) == pytest.approx(come_in(ALARMS, MONTH + timedelta(days=max(days))))


def test_regular_looks_have_the_same_level_after_the_first(database):
    spent = [looked(database, "drift:even", MONTH + timedelta(hours=6 * k)) for k in range(120)]
    assert spent[0] == pytest.approx(0.1 * ALARMS)
    assert spent[1:] == pytest.approx([0.9 * ALARMS / 120] * 119)


def test_a_second_look_at_the_same_moment_has_nothing_left(database):
    moment = MONTH + timedelta(days=3)
    assert looked(database, "drift:twice", moment) > 0
    assert looked(database, "drift:twice", moment) == 0


def test_subjects_and_months_have_budgets_of_their_own(database):
    last = MONTH + timedelta(days=29, hours=23)
    assert looked(database, "drift:one", last) == pytest.approx(ALARMS, rel=0.01)
    assert looked(database, "drift:other", last) == pytest.approx(ALARMS, rel=0.01)
    after = datetime(2026, 5, 1, 0, 0, 1, tzinfo=UTC)
    assert looked(database, "drift:one", after) == pytest.approx(0.1 * ALARMS, rel=0.01)
    with database.session() as session:
        assert used(session, "drift:one", after) == pytest.approx(0.1 * ALARMS, rel=0.01)


@settings(deadline=None)
@given(
    moment=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
)
def test_the_budget_comes_in_evenly_and_no_more(moment):
    assert 0.1 * ALARMS <= come_in(ALARMS, moment) <= ALARMS
    start = month_start(moment)
    assert start.day == 1
    assert start <= moment
    assert come_in(ALARMS, start) == pytest.approx(0.1 * ALARMS)
