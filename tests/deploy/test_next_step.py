"""What a pass says of its version's traffic: how that stands now, not how it was begun."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.commands.train import next_step
from gateway.database import Database
from pipelines.champion import Services
from pipelines.experiment import stop
from pipelines.first_traffic import FirstTraffic
from pipelines.promotion import Promotion, Rollback, promote, rollback
from pipelines.rollout import Replicas
from pipelines.spec import load_spec
from tests.pipelines.lifecycle import ALIAS, begin, seed_version
from tests.pipelines.scripted_engine import ScriptedEngine

pytest_plugins = ("tests.state_databases",)


@pytest.fixture
async def services(database: Database) -> AsyncIterator[Services]:
    seed_version(database, "1")
    async with ScriptedEngine() as engine:
        yield Services(database, Replicas([engine.url]))


def said(database: Database, begun: FirstTraffic) -> str:
    path = Path("extractor")
    with database.session() as session:
        return next_step(session, begun, load_spec(path), path)


async def test_an_experiment_that_has_ended_is_not_under_way(services, database):
    row = await begin(services, "1")
    begun = FirstTraffic("1", experiment_id=row.experiment_id)
    assert "is under way on extractor; see: llmops experiment status" in said(database, begun)
    stop(database, row.experiment_id, "a test", "anna")
    assert "was stopped and is not begun anew; to try it again: llmops" in said(database, begun)


async def test_a_promotion_that_was_taken_back_answers_nothing(services, database):
    order = Promotion(ALIAS, ALIAS, "1", "anna", "a test")
    moved = await promote(services, order)
    assert moved.promotion is not None
    begun = FirstTraffic("1", promotion_id=moved.promotion.promotion_id)
    assert said(database, begun) == "extractor is answered by it"
    await rollback(services, Rollback(ALIAS, "anna", "a test"))
    assert "was taken back; to try it again" in said(database, begun)
