"""Labels of predictions as feedback: what they cost, and when they count."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.records import Decision
from gateway.configuration import ConfigurationError
from gateway.database import Database, now
from gateway.feedback import FeedbackRow
from pipelines.champion import Services
from pipelines.experiment import conclude, examine
from pipelines.lineage_erasures import Excuses
from pipelines.lineage_findings import Findings, LinkState
from pipelines.lineage_heard import check_heard
from pipelines.losses import brier, probability_of
from pipelines.observations import Observations
from pipelines.plan import Plan
from pipelines.rollout import Replicas
from pipelines.tables import ExperimentRow
from tests.pipelines.lifecycle import METRICS, Traffic, begin, plan, seed_version
from tests.pipelines.scripted_engine import ScriptedEngine
from tests.spooled_requests import final, record, write_segment

pytest_plugins = ("tests.state_databases",)
DAY = 24.0


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


def answer(*probabilities: Any) -> bytes:
    return orjson.dumps({"predictions": [{"probability": one} for one in probabilities]})


def predicted(
    traffic: Traffic, experiment: ExperimentRow, user: str, response: bytes, **fields: Any
) -> str:
    """A logged prediction of the experiment; returns its id."""
    arm = fields.pop("arm", None) or traffic.arm_of(experiment, user)
    shared = {"endpoint": "predict", "experiment": experiment.experiment_id, "variant": arm}
    one = record(user=user, tenant="acme", model=experiment.alias, **shared, **fields)
    write_segment(traffic.home / "spool", final(one, response=response))
    return one.request_id


def aged(hours: float) -> int:
    """Microseconds of a moment so long ago."""
    return round((now() - timedelta(hours=hours)).timestamp() * 1e6)


def said_ago(database: Database, feedback_id: str, hours: float) -> None:
    with database.transaction() as session:
        row = session.get_one(FeedbackRow, feedback_id)
        row.created_at -= timedelta(hours=hours)


async def test_a_label_counts_as_the_loss_of_the_probability(services, traffic):
    experiment = await begin(services, "1", plan=plan(loss="brier"))
    for user, probability, label in (("ann", 0.9, True), ("ben", 0.9, False), ("eve", 0.2, False)):
        traffic.feedback(predicted(traffic, experiment, user, answer(probability)), label)
    seen = Observations(services.database, traffic.reader, experiment).refresh()
    values = sorted(value for arm in seen.values.values() for value in arm)
    assert values == pytest.approx([1 - 0.81, 1 - 0.04, 1 - 0.01])


async def test_a_label_without_one_probability_is_counted_as_unusable(services, traffic):
    experiment = await begin(services, "1", plan=plan(loss="brier"))
    bodies = (answer(0.1, 0.9), answer(), b"not json", b"[]", answer("0.4"), answer(1.5), b"")
    for number, body in enumerate(bodies):
        traffic.feedback(predicted(traffic, experiment, f"user-{number}", body), True)
    seen = Observations(services.database, traffic.reader, experiment).refresh()
    assert (seen.users, seen.unusable) == (0, len(bodies))


async def test_the_arm_with_the_smaller_loss_wins(services, traffic):
    """And the lineage check hears as many users as the verdict says."""
    experiment = await begin(services, "1", plan=plan(loss="brier"))
    for number in range(160):
        user, label = f"user-{number}", number % 3 == 0
        sure = traffic.arm_of(experiment, user) == "challenger"
        probability = (0.9 if label else 0.1) if sure else 0.5
        traffic.feedback(predicted(traffic, experiment, user, answer(probability)), label)
    finding = examine(experiment, Observations(services.database, traffic.reader, experiment))
    assert finding.decision is Decision.PROMOTE
    assert finding.result.name == "helpful_brier"
    assert finding.result.candidate == pytest.approx(0.01)
    assert finding.result.baseline == pytest.approx(0.25)
    high = finding.result.ci_high
    assert high is not None and high < 0  # less is better
    ended = await conclude(services, experiment.experiment_id, finding)
    with services.database.session() as session:
        findings = Findings()
        check_heard(traffic.reader, session, findings, ended, Excuses([]))
    assert {link.state for link in findings.links.values()} == {LinkState.OK}


async def test_labels_count_when_their_request_is_old_enough(services, traffic, database):
    """The quick ones wait for the slow ones, and those that came too late never count."""
    experiment = await begin(services, "1", plan=plan(loss="brier", matures_hours=DAY))
    with database.transaction() as session:
        session.get_one(ExperimentRow, experiment.experiment_id).started_at -= timedelta(days=9)
    experiment.started_at -= timedelta(days=9)
    old = predicted(traffic, experiment, "ann", answer(0.9), ts=aged(DAY + 1))
    young = predicted(traffic, experiment, "ben", answer(0.9), ts=aged(DAY - 1))
    stale = predicted(traffic, experiment, "eve", answer(0.9), ts=aged(DAY + 1))
    said_ago(database, traffic.feedback(old, True), 20)
    traffic.feedback(young, True)
    traffic.feedback(stale, True)  # now: an hour too late
    watched = Observations(database, traffic.reader, experiment)
    seen = watched.refresh()
    assert (seen.users, seen.late) == (1, 1)
    assert Observations(database, traffic.reader, experiment).refresh() == seen


def test_labels_are_booleans():
    with pytest.raises(ConfigurationError, match="loss: rating is float"):
        Plan(metric="rating", loss="brier").settled(METRICS)


@given(st.floats(0, 1), st.booleans())
def test_brier_is_the_squared_distance(probability, label):
    loss = brier(probability, label)
    assert loss is not None and 0 <= loss <= 1
    assert loss == pytest.approx((probability - (1 if label else 0)) ** 2)
    assert brier(None, label) is None and brier(probability, "true") is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["predictions", "probability"]), inner)
        ),
    )
)
def test_any_answer_is_read(body):
    found = probability_of(orjson.dumps(body).decode())
    assert found is None or 0 <= found <= 1
