"""Experiments: who counts, what is decided, and that a decision is there whole or not at all."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from evals.records import Decision
from evals.verdicts import find_verdict
from gateway.database import Conflict, Database, now
from gateway.errors import NotFound
from pipelines.champion import Services
from pipelines.experiment import Trial, conclude, examine, latest, start, stop, under_way
from pipelines.findings import Finding, find
from pipelines.observations import Observations
from pipelines.rollout import Replicas, RolloutFailed
from pipelines.tables import ExperimentRow
from tests.pipelines.lifecycle import (
    ALIAS,
    Traffic,
    adapter_name,
    backdate,
    begin,
    plan,
    refuse_writes,
    seed_version,
    state_of,
)
from tests.pipelines.observed_users import BAD, GOOD, observed
from tests.pipelines.scripted_engine import ScriptedEngine
from tests.spooled_requests import shipper_of

pytest_plugins = ("tests.state_databases",)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


@pytest.fixture
def services(database: Database, engine: ScriptedEngine) -> Services:
    seed_version(database, "1")
    return Services(database, Replicas([engine.url]))


@pytest.fixture
def traffic(tmp_path: Path, database: Database) -> Traffic:
    return Traffic(tmp_path / "home", database)


def observations(traffic: Traffic, experiment: ExperimentRow) -> Observations:
    return Observations(traffic.database, traffic.reader, experiment)


async def test_it_starts_whole_and_only_when_the_candidate_is_served(services, engine, database):
    experiment = await begin(services, "1", plan=plan(weight=0.2))
    after = state_of(database)
    assert engine.adapters == {adapter_name("1"): f"/adapters/{adapter_name('1')}"}
    assert after.arms() == {"champion": None, "challenger": adapter_name("1")}
    assert [arm.weight for arm in after.split.arms] == [0.8, 0.2]
    assert after.split.experiment_id == experiment.experiment_id
    assert len(bytes.fromhex(after.split.salt)) == 16
    assert [one.state for one in after.experiments] == ["running"]
    assert after.actions == ["experiment.start"]
    assert [one.experiment_id for one in under_way(database)] == [experiment.experiment_id]


async def test_nothing_starts_where_an_engine_refuses_the_candidate(services, engine, database):
    engine.refusal = (400, "Loading lora x failed: No adapter found for y")
    with pytest.raises(RolloutFailed, match="no adapter_config"):
        await begin(services, "1")
    after = state_of(database)
    assert (after.split, after.experiments, after.actions) == (None, [], [])


async def test_a_second_one_on_the_alias_is_refused(services, database):
    first = await begin(services, "1")
    seed_version(database, "2")
    with pytest.raises(Conflict, match=f"experiment {first.experiment_id} is under way"):
        await begin(services, "2")
    assert len(state_of(database).experiments) == 1


async def test_of_two_that_start_at_once_one_wins(services, database):
    seed_version(database, "2")
    outcomes: list[Any] = [None, None]

    def work(position: int, version: str) -> None:
        try:
            outcomes[position] = asyncio.run(begin(services, version))
        except Conflict as refused:
            outcomes[position] = refused

    threads = [threading.Thread(target=work, args=each) for each in enumerate(("1", "2"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "ExperimentRow"]
    after = state_of(database)
    assert len(after.experiments) == 1
    assert after.split.experiment_id == after.experiments[0].experiment_id


async def test_versions_without_lineage_are_refused(services, database):
    with pytest.raises(NotFound, match="no version '9'"):
        await begin(services, "9")
    seed_version(database, "2", decision=None)
    with pytest.raises(Conflict, match="no verdict on it"):
        await begin(services, "2")
    seed_version(database, "3", decision=Decision.REJECT)
    with pytest.raises(Conflict, match="the verdict on it is reject: so it was measured"):
        await begin(services, "3")
    experiment = await begin(services, "2", unjudged="a drill")
    assert experiment.version == "2"


async def test_a_user_gives_one_observation(services, traffic, database):
    experiment = await begin(services, "1", plan=plan(feedback_per_user=2))
    watched = observations(traffic, experiment)
    first, second, third = (traffic.request(experiment, "ann") for _ in range(3))
    traffic.feedback(first, True)
    assert watched.refresh().users == 0
    traffic.feedback(f"chatcmpl-{second}", False)
    traffic.feedback(third, False)
    seen = watched.refresh()
    arm = traffic.arm_of(experiment, "ann")
    assert seen.values[arm] == [0.5]
    assert seen.users == 1 == seen.answered
    assert observations(traffic, experiment).refresh() == seen


async def test_what_does_not_count(services, traffic, database):
    before = traffic.request(None, "early")
    experiment = await begin(services, "1")
    counts = traffic.request(experiment, "ann")
    other_experiment = traffic.request(
        experiment, "ben", experiment="0192f0c1-0000-7000-8000-00000000dead"
    )
    others = traffic.request(experiment, "eve", tenant="other")
    for reference in (before, other_experiment, "chatcmpl-unknown"):
        traffic.feedback(reference, True)
    traffic.feedback(others, True)  # acme's feedback on another tenant's request
    traffic.feedback(counts, 3, metric="rating")  # another metric
    watched = observations(traffic, experiment)
    assert watched.refresh().users == 0
    traffic.feedback(counts, True)
    traffic.feedback(others, True, tenant="other")
    seen = watched.refresh(count=True)
    assert (seen.users, seen.answered, seen.unusable) == (2, 2, 0)
    assert sum(seen.assigned.values()) == 3 - 1  # ben's request is another experiment's


async def test_tenants_are_apart_and_a_unit_is_user_else_episode_else_key(services, traffic):
    experiment = await begin(services, "1")
    for fields in (
        {"user": "ann"},
        {"user": "ann", "episode_id": "e-1"},  # the same user
        {"user": "ann", "tenant": "other"},
        {"user": None, "episode_id": "e-1"},
        {"user": None, "episode_id": None, "key_id": "key-2"},
        {"user": None, "episode_id": None, "key_id": "key-2"},  # the same key
    ):
        tenant = fields.get("tenant", "acme")
        traffic.feedback(
            traffic.request(experiment, fields.pop("user"), **fields), True, tenant=tenant
        )
    seen = observations(traffic, experiment).refresh()
    assert seen.users == 4
    assert sum(seen.assigned.values()) == 4


async def test_feedback_waits_for_its_request_and_finds_upstream_ids(services, traffic):
    experiment = await begin(services, "1")
    watched = observations(traffic, experiment)
    traffic.feedback("gen-77", True)
    assert watched.refresh().users == 0
    traffic.request(experiment, "ann", upstream_id="gen-77")
    assert watched.refresh().users == 1


async def test_it_goes_on_across_the_shipper(services, traffic):
    experiment = await begin(services, "1")
    watched = observations(traffic, experiment)
    traffic.feedback(traffic.request(experiment, "ann"), True)
    assert watched.refresh().users == 1
    shipper_of(traffic.home).ship()
    traffic.feedback(traffic.request(experiment, "ben"), False)
    assert watched.refresh(count=True).users == 2
    again = observations(traffic, experiment).refresh()
    assert again.users == 2 == sum(again.assigned.values())


async def test_a_user_in_both_arms_is_left_out_and_counted(services, traffic):
    experiment = await begin(services, "1")
    for arm in ("champion", "challenger"):
        traffic.feedback(traffic.request(experiment, "ann", variant=arm), True)
    traffic.feedback(traffic.request(experiment, "ben", variant="champion"), True)
    traffic.request(experiment, "ben", variant="challenger")  # no feedback there
    traffic.feedback(traffic.request(experiment, "cid"), True)
    seen = observations(traffic, experiment).refresh()
    assert (seen.users, seen.in_both) == (1, 2)
    assert "2 in both arms left out" in find(experiment, seen, now()).reason


async def test_values_are_scaled_and_those_that_do_not_fit_are_counted(services, traffic):
    experiment = await begin(services, "1", plan=plan("rating", minimum=2))
    for user, value in (("ann", 5), ("ben", 3.5), ("cid", 1)):
        traffic.feedback(traffic.request(experiment, user), value, metric="rating")
    seen = observations(traffic, experiment).refresh()
    assert sorted(value for values in seen.values.values() for value in values) == [0.5, 1.0]
    assert seen.unusable == 1


async def test_a_better_candidate_is_promoted_in_one_step(services, traffic, database, engine):
    experiment = await begin(services, "1")
    watched = observations(traffic, experiment)
    traffic.users(experiment, 8, {"champion": 0.25, "challenger": 0.75})
    assert examine(experiment, watched).decision is None
    traffic.users(experiment, 100, {"champion": 0.25, "challenger": 0.75}, first=8)
    finding = examine(experiment, watched)
    assert finding.decision is Decision.PROMOTE
    result: Any = finding.result
    assert result.ci_low > 0 and result.passed is True
    ended = await conclude(services, experiment.experiment_id, finding)

    after = state_of(database)
    assert ended.state == "promoted" == after.experiments[0].state
    assert after.arms() == {"champion": adapter_name("1")}
    assert after.split.experiment_id is None
    assert (after.champion.version, after.champion.previous) == ("1", None)
    (promotion,) = after.promotions
    assert (promotion.kind, promotion.state) == ("promote", "moving")
    assert promotion.experiment_id == experiment.experiment_id
    assert promotion.verdict_id == ended.verdict_id
    assert after.actions == ["experiment.start", "experiment.promoted", "champion.promote"]
    with database.session() as session:
        verdict: Any = find_verdict(session, str(ended.verdict_id))
    assert verdict.subject == adapter_name("1") and verdict.baseline == "base"
    assert verdict.evidence["experiment_id"] == experiment.experiment_id
    assert sum(verdict.evidence["users"].values()) == 108
    assert latest(database, ALIAS)[0].message == finding.reason


async def test_while_nothing_is_heard_nothing_is_reckoned_anew(services, traffic, database):
    experiment = await begin(services, "1")
    watched = observations(traffic, experiment)
    traffic.users(experiment, 8, {"champion": 0.25, "challenger": 0.75})
    before = examine(experiment, watched)
    assert examine(experiment, watched, before) is before
    traffic.users(experiment, 1, {"champion": 0.25, "challenger": 0.75}, first=8)
    heard = examine(experiment, watched, before)
    assert heard is not before and heard.observed.users == 9
    backdate(database, experiment, now() - timedelta(hours=200))
    assert examine(experiment, watched, heard).decision is Decision.HOLD


@pytest.mark.parametrize(
    ("finding_of", "state"),
    [
        (lambda row: find(row, observed(GOOD, BAD), now()), "rolled_back"),
        (lambda row: find(row, observed(GOOD, GOOD), now() + timedelta(hours=200)), "held"),
    ],
    ids=["worse", "undecided"],
)
async def test_without_promotion_all_traffic_goes_back(services, database, finding_of, state):
    experiment = await begin(services, "1")
    ended = await conclude(services, experiment.experiment_id, finding_of(experiment))
    after = state_of(database)
    assert ended.state == state
    assert after.arms() == {"champion": None}
    assert after.split.experiment_id is None
    assert after.promotions == [] and after.champion.version is None
    assert after.actions == ["experiment.start", f"experiment.{state}"]
    assert after.experiments[0].ended_at is not None


async def test_it_ends_once(services, database):
    experiment = await begin(services, "1")
    won = find(experiment, observed(BAD, GOOD), now())
    lost = find(experiment, observed(GOOD, BAD), now())
    await conclude(services, experiment.experiment_id, won)
    first = state_of(database)
    again = await conclude(services, experiment.experiment_id, lost)
    assert again.state == "promoted"
    after = state_of(database)
    assert (after.actions, after.arms()) == (first.actions, first.arms())
    with pytest.raises(Conflict, match="has ended already: promoted"):
        stop(database, experiment.experiment_id, "too late", "anna")


async def test_a_winner_that_an_engine_lost_waits_and_nothing_moves(services, database, engine):
    experiment = await begin(services, "1")
    await engine.restart()
    engine.refusal = (500, "out of memory")
    won = find(experiment, observed(BAD, GOOD), now())
    with pytest.raises(RolloutFailed):
        await conclude(services, experiment.experiment_id, won)
    assert state_of(database).actions == ["experiment.start"]
    engine.refusal = None
    assert (await conclude(services, experiment.experiment_id, won)).state == "promoted"


@pytest.mark.parametrize("table", ["promotion", "split", "verdict", "audit", "experiment"])
async def test_a_conclusion_that_breaks_off_leaves_nothing_behind(services, database, table):
    """Whichever row cannot be written, none is."""
    experiment = await begin(services, "1")
    before = state_of(database)
    won = find(experiment, observed(BAD, GOOD), now())
    refuse_writes(database, table)
    with pytest.raises(Exception, match="refused for the test"):
        await conclude(services, experiment.experiment_id, won)
    after = state_of(database)
    assert after.arms() == before.arms()
    assert after.actions == before.actions
    assert (after.promotions, after.experiments[0].state) == ([], "running")
    with database.session() as session:
        assert session.execute(text("SELECT count(*) FROM verdict")).scalar_one() == 1


async def test_it_can_be_stopped_by_hand(services, database):
    experiment = await begin(services, "1")
    stopped = stop(database, experiment.experiment_id, "wrong candidate", "ben")
    assert (stopped.state, stopped.message) == ("stopped", "wrong candidate")
    assert stop(database, experiment.experiment_id, "again", "ben").message == "wrong candidate"
    after = state_of(database)
    assert after.arms() == {"champion": None}
    assert after.actions == ["experiment.start", "experiment.stopped"]
    with pytest.raises(NotFound):
        stop(database, "0192f0c1-0000-7000-8000-000000000000", "none", "ben")
    assert (await begin(services, "1")).state == "running"


async def test_equal_arms_are_an_a_a_experiment(services, database):
    experiment = await begin(services, None)
    assert state_of(database).arms() == {"champion": None, "challenger": None}
    finding = find(experiment, observed(BAD, GOOD), now())
    assert finding.decision is Decision.ALERT
    assert "both arms are the same" in finding.reason
    ended = await conclude(services, experiment.experiment_id, finding)
    assert ended.state == "held"
    assert state_of(database).promotions == []


async def test_the_champion_is_not_its_own_challenger(services, database):
    experiment = await begin(services, "1")
    won = find(experiment, observed(BAD, GOOD), now())
    await conclude(services, experiment.experiment_id, won)
    with pytest.raises(Conflict, match="is the champion of extractor already"):
        await begin(services, "1")
    with pytest.raises(Conflict, match="an alias has one registered model"):
        await start(services, Trial(ALIAS, "other", None, plan(), "anna"))
    seed_version(database, "2")
    following = await begin(services, "2")
    assert state_of(database).arms() == {
        "champion": adapter_name("1"),
        "challenger": adapter_name("2"),
    }
    assert following.arms[0]["variant"]["adapter"] == adapter_name("1")


async def test_an_old_experiment_is_read_anew_and_comes_to_the_same(services, traffic, database):
    """As after a restart of the controller, with much of it in the table already."""
    experiment = await begin(services, "1")
    backdate(database, experiment, now() - timedelta(hours=3))
    watched = observations(traffic, experiment)
    for part in range(3):
        traffic.users(experiment, 20, {"champion": 0.2, "challenger": 0.9}, first=20 * part)
        seen = watched.refresh(count=True)
        shipper_of(traffic.home).ship()
    fresh = observations(traffic, experiment).refresh()
    assert {arm: sorted(values) for arm, values in fresh.values.items()} == {
        arm: sorted(values) for arm, values in seen.values.items()
    }
    assert fresh.assigned == seen.assigned
    finding: Finding = find(experiment, fresh, now())
    assert finding.decision is Decision.PROMOTE
