"""Which prompt versions may be tried, and that starts, ends and moves are whole, one at a time."""

import asyncio
import threading
from typing import Any

import pytest
import uuid_utils
from sqlalchemy import text

from evals.records import Decision, Verdict
from evals.verdicts import add_verdict, verdicts_on
from gateway.audit import AuditFilter, entries
from gateway.database import Conflict, Database, now
from gateway.errors import BadRequest, NotFound
from pipelines.champion import Services
from pipelines.engines import NothingToLoad
from pipelines.experiment import conclude, stop, title_of
from pipelines.findings import find
from pipelines.observations import Observed
from pipelines.prompt_labels import subject_of
from pipelines.prompt_promotion import LabelOrder, PromptRollback, label, rollback
from pipelines.tables import ExperimentRow
from tests.pipelines.lifecycle import refuse_writes
from tests.pipelines.prompt_trial import begin, first, plan, prompt, put, row_of, state_of

pytest_plugins = ("tests.state_databases",)
NAME = "greeter"
GOOD, BAD = [1.0] * 27 + [0.0] * 3, [0.0] * 28 + [1.0] * 2


@pytest.fixture(autouse=True)
def three(database: Database) -> None:
    """Three versions, the first in production."""
    for version in ("1", "2", "3"):
        put(database, version, prompt(NAME, f"text {version}"))
    first(database, NAME)


def judged(database: Database, version: str, decision: Decision) -> None:
    verdict = Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject=subject_of(prompt(NAME, f"text {version}")),
        baseline=subject_of(prompt(NAME, "text 1")),
        decision=decision,
        metrics=(),
        reasons=("so it was measured",),
        evidence={},
        created_at=now(),
    )
    with database.transaction() as session:
        add_verdict(session, verdict)


def observed(champion: list[float], challenger: list[float]) -> Observed:
    values = {"champion": champion, "challenger": challenger}
    return Observed(values, {arm: len(said) for arm, said in values.items()})


def watched(champion: list[float], challenger: list[float]) -> Observed:
    """As many as a watch with one user in ten held back sees."""
    return observed(champion, challenger * 9)


async def concluded(database: Database, row: ExperimentRow, seen: Observed) -> ExperimentRow:
    services = Services(database, NothingToLoad())
    return await conclude(services, row.experiment_id, find(row, seen, now()))


async def test_what_may_not_be_tried_is_refused_and_nothing_is_written(database):
    put(database, "1", prompt("unset", "text"))
    put(database, "4", prompt(NAME, "by {{ author }}", variables=[{"name": "author"}]))
    refused: dict[tuple[str, str], tuple[type[Exception], str]] = {
        ("nobody", "1"): (NotFound, "there is no prompt 'nobody'"),
        (NAME, "9"): (NotFound, r"no version or label '9' \(versions: 1, 2, 3, 4\)"),
        ("unset", "1"): (Conflict, "no production version that a candidate could be compared"),
        (NAME, "1"): (Conflict, "version 1 is what production names already"),
        (NAME, "production"): (Conflict, "version 1 is what production names already"),
        (NAME, "4"): (Conflict, "who: callers give it, the candidate does not know it; author: "
                                "the candidate requires it, callers do not give it"),
    }  # fmt: skip
    before = state_of(database, NAME)
    for (name, version), (kind, said) in refused.items():
        with pytest.raises(kind, match=said):
            await begin(database, name, version)
    assert state_of(database, NAME) == before


async def test_a_refused_version_is_tried_only_with_a_reason(database):
    judged(database, "2", Decision.REJECT)
    for unjudged in (None, "  "):
        with pytest.raises(Conflict, match="the verdict on it is reject: so it was measured"):
            await begin(database, NAME, "2", unjudged=unjudged)
    row = await begin(database, NAME, "2", unjudged="a second look")
    with database.session() as session:
        started = entries(session, AuditFilter(action="experiment.start"))[0].change
    assert (started.reason, started.subject) == ("a second look", f"experiment:{row.experiment_id}")
    assert (started.evidence or {})["champion_version"] == "1"


async def test_it_starts_whole(database):
    row = await begin(database, NAME, "2", plan=plan(weight=0.2))
    after = state_of(database, NAME)
    assert after.split is not None and after.split.experiment_id == row.experiment_id
    assert [(arm.variant.name, arm.variant.prompt_version) for arm in after.split.arms] == [
        ("champion", "1"), ("challenger", "2"),
    ]  # fmt: skip
    assert [arm.weight for arm in after.split.arms] == [0.8, 0.2]
    assert (after.production, after.actions) == ("1", ["prompt.first", "experiment.start"])
    with pytest.raises(Conflict, match=f"experiment {row.experiment_id} is under way"):
        await begin(database, NAME, "3")


async def test_of_two_that_start_at_once_one_wins(database):
    outcomes: list[Any] = [None, None]

    def work(position: int, version: str) -> None:
        try:
            outcomes[position] = asyncio.run(begin(database, NAME, version))
        except Conflict as refused:
            outcomes[position] = refused

    threads = [threading.Thread(target=work, args=each) for each in enumerate(("2", "3"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "ExperimentRow"]
    (row,) = [one for one in outcomes if isinstance(one, ExperimentRow)]
    split = state_of(database, NAME).split
    assert split is not None and split.experiment_id == row.experiment_id


@pytest.mark.parametrize("table", ["prompt_label", "verdict", "audit", "experiment"])
async def test_a_conclusion_that_breaks_off_leaves_nothing_behind(database, table):
    row = await begin(database, NAME, "2")
    before = state_of(database, NAME)
    refuse_writes(database, table)
    with pytest.raises(Exception, match="refused for the test"):
        await concluded(database, row, observed(BAD, GOOD))
    assert state_of(database, NAME) == before
    assert row_of(database, row.experiment_id).state == "running"
    with database.session() as session:
        assert session.execute(text("SELECT count(*) FROM verdict")).scalar_one() == 0


async def test_production_stays_during_it_and_a_rollback_ends_it(database):
    judged(database, "2", Decision.PROMOTE)
    label(database, LabelOrder(NAME, "2", "production", "anna", "better"))
    judged(database, "3", Decision.PROMOTE)
    row = await begin(database, NAME, "3")
    with pytest.raises(Conflict, match=f"experiment {row.experiment_id} is under way"):
        label(database, LabelOrder(NAME, "3", "production", "anna", "impatient"))
    done = rollback(database, PromptRollback(NAME, "ben", "it is rude"))
    assert (done.version, done.before, done.stopped) == ("1", "2", row.experiment_id)
    after = state_of(database, NAME)
    assert (after.production, after.split) == ("1", None)
    assert after.actions[-3:] == ["experiment.start", "experiment.stopped", "prompt.rollback"]
    assert row_of(database, row.experiment_id).message == "rolled back: it is rude"
    late = await concluded(database, row, observed(BAD, GOOD))  # the controller is too late
    assert (late.state, state_of(database, NAME)) == ("stopped", after)


async def test_at_its_first_version_a_rollback_only_ends_it(database):
    row = await begin(database, NAME, "2")
    done = rollback(database, PromptRollback(NAME, "ben", "nonsense"))
    assert (done.version, done.before, done.stopped) == ("1", "1", row.experiment_id)
    assert state_of(database, NAME).actions[-1] == "experiment.stopped"
    with pytest.raises(Conflict, match="there is nothing to go back to"):
        rollback(database, PromptRollback(NAME, "ben", "again"))


async def test_it_is_stopped_for_a_reason(database):
    row = await begin(database, NAME, "2")
    with pytest.raises(BadRequest, match="reason"):
        stop(database, row.experiment_id, "  ", "ben")
    assert state_of(database, NAME).split is not None
    stop(database, row.experiment_id, "wrong candidate", "ben")
    assert state_of(database, NAME).split is None


async def test_a_watch_that_finds_nothing_leaves_the_winner_where_it_is(database):
    row = await begin(database, NAME, "2", plan=plan(holdback=0.1, watch_hours=1))
    await concluded(database, row, observed(BAD, GOOD))
    split = state_of(database, NAME).split
    assert split is not None and split.experiment_id not in (None, row.experiment_id)
    watch = row_of(database, str(split.experiment_id))
    assert (watch.version, watch.plan["watches"]) == ("2", row.experiment_id)
    assert find(watch, watched(BAD, GOOD), now()).decision is None  # it has won already
    over = find(watch, watched(GOOD, GOOD), watch.started_at.replace(year=2100))
    assert over.decision is Decision.HOLD and "nothing found against the candidate" in over.reason
    done = await conclude(Services(database, NothingToLoad()), watch.experiment_id, over)
    after = state_of(database, NAME)
    assert (done.state, after.production, after.split) == ("held", "2", None)


async def test_a_watch_whose_users_like_it_less_takes_it_back(database):
    row = await begin(database, NAME, "2", plan=plan(holdback=0.1))
    await concluded(database, row, observed(BAD, GOOD))
    split = state_of(database, NAME).split
    watch = row_of(database, str(split and split.experiment_id))
    done = await concluded(database, watch, watched(GOOD, BAD))
    after = state_of(database, NAME)
    assert (done.state, after.production, after.split) == ("rolled_back", "1", None)
    with database.session() as session:
        assert title_of(f"prompt:{NAME}").moves_of(session, watch.experiment_id)
        subject = subject_of(prompt(NAME, "text 2"))
        decisions = [one.decision for one in verdicts_on(session, subject)]
    assert decisions == [Decision.PROMOTE, Decision.REJECT]
    with pytest.raises(Conflict, match="the verdict on it is reject"):
        label(database, LabelOrder(NAME, "2", "production", "anna", "once more"))
