"""The lineage check of chains in every state that the project brings them into: no false alarm."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.extraction import training_pool
from evals.gate import Condition, judge
from evals.verdicts import add_verdict
from gateway.database import now
from gateway.errors import NotFound
from gateway.splits import find_split
from pipelines.champion import Services
from pipelines.experiment import Trial, conclude, start, stop
from pipelines.findings import find
from pipelines.lineage_check import Report, check, check_champion, check_one
from pipelines.observations import Observations
from pipelines.plan import Plan
from pipelines.promotion import Promotion, Rollback, follow_up, promote, rollback
from pipelines.registry import Registry
from pipelines.runs import Run, under_way
from pipelines.tables import ExperimentRow
from tests.pipelines.lifecycle_rows import METRICS, TENANT, Asked, Chain, Engine, log, write_chain
from tests.pipelines.lineage_damage import checked, edit, sources_of, told
from tests.pipelines.mlflow_server import MLflowServer

MOVE: dict[str, Any] = {"actor": "anna", "reason": "because"}


class Story:
    """A chain and what is done with it; MLflow is told after each move."""

    def __init__(self, chain: Chain, tracking_uri: str):
        self.chain = chain
        self.tracking_uri = tracking_uri
        self.services = Services(chain.database, Engine())

    def check(self) -> Report:
        follow_up(self.chain.database, Registry(self.tracking_uri))
        return checked(self.chain, self.tracking_uri)

    def is_whole(self) -> bool:
        report = self.check()
        assert not report.broken, told(report)
        return True

    async def back(self) -> None:
        await rollback(self.services, Rollback(self.chain.name, **MOVE))

    async def forth(self) -> None:
        chain = self.chain
        order = Promotion(alias=chain.name, name=chain.name, version=chain.version, **MOVE)
        await promote(self.services, order)

    async def begin(self, version: str | None, **plan: Any) -> ExperimentRow:
        given = {"metric": "helpful", "minimum_users": 10, "maximum_users": 400} | plan
        settled = Plan.model_validate(given).settled(METRICS)
        name = self.chain.name
        return await start(self.services, Trial(name, name, version, settled, actor="anna"))

    def hear(self, row: ExperimentRow, answers: dict[str, bool], users: int = 60) -> None:
        """Users with a request and feedback each, in the arms that the split gives them."""

        with self.chain.database.session() as session:
            split = find_split(session, self.chain.name)
        assert split is not None
        asked = []
        for number, case in enumerate(training_pool(7, users)):
            arm = split.choose(TENANT, f"user-{number}")
            fields = {"experiment": row.experiment_id, "variant": arm.name, "adapter": arm.adapter}
            asked.append(Asked(case, f"user-{number}", answers[arm.name], fields))
        log(self.chain, asked)

    async def end(self, row: ExperimentRow) -> ExperimentRow:
        observed = Observations(self.chain.database, self.chain.reader, row).refresh(count=True)
        return await conclude(self.services, row.experiment_id, find(row, observed, now()))


@pytest.fixture
def story(
    mlflow_server: MLflowServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Story]:
    name = request.node.name.replace("_", "-")[-60:]
    chain = write_chain(tmp_path, name=name, tracking_uri=mlflow_server.url)
    yield Story(chain, mlflow_server.url)
    chain.database.close()


async def test_back_and_forth(story: Story) -> None:
    chain = story.chain
    await story.back()
    assert "the controller is still to tell MLflow" in told(checked(chain, story.tracking_uri))
    assert story.is_whole()
    assert check_champion(sources_of(chain, story.tracking_uri), chain.name).versions == ()
    await story.forth()
    assert story.is_whole()
    # A promotion by hand has no experiment that would miss it.
    edit(chain, "DELETE FROM promotion WHERE experiment_id IS NULL AND kind = 'promote'")
    assert "promotion" in told(check(sources_of(chain, story.tracking_uri), chain.name))
    edit(chain, "DELETE FROM promotion")
    edit(chain, "DELETE FROM experiment")
    assert "promotion" in told(check(sources_of(chain, story.tracking_uri), chain.name))


async def test_a_rejected_candidate(story: Story) -> None:
    await story.back()
    row = await story.begin(story.chain.version)
    assert story.is_whole()
    story.hear(row, {"champion": True, "challenger": False})
    assert (await story.end(row)).state == "rolled_back"
    assert story.is_whole()
    edit(story.chain, "UPDATE experiment SET state = 'held' WHERE state = 'rolled_back'")
    assert f"experiment {row.experiment_id} → audit row experiment.held" in told(story.check())


async def test_equal_arms_that_are_held(story: Story) -> None:
    row = await story.begin(None, maximum_users=20)
    assert story.is_whole()
    story.hear(row, {"champion": True, "challenger": True})
    assert (await story.end(row)).state == "held"
    assert story.is_whole()


async def test_an_experiment_that_is_stopped(story: Story) -> None:
    await story.back()
    row = await story.begin(story.chain.version)
    story.hear(row, {"champion": True, "challenger": False}, users=5)
    stop(story.chain.database, row.experiment_id, "enough", "anna")
    assert story.is_whole()
    edit(story.chain, "DELETE FROM experiment WHERE experiment_id = ?", row.experiment_id)
    broken = told(story.check())
    assert f"model {story.chain.name} → experiment {row.experiment_id}" in broken
    assert f"requests on {story.chain.name} → experiment {row.experiment_id}: " in broken


async def test_a_rollback_while_an_experiment_is_under_way(story: Story) -> None:
    await story.begin(None)
    await story.back()
    assert story.is_whole()


def test_runs_that_made_nothing(story: Story) -> None:
    chain = story.chain
    with pytest.raises(RuntimeError, match="too hot"), _run(chain) as run:
        run.note(stage="train", dataset_id=chain.dataset_id)
        raise RuntimeError("too hot")
    with _run(chain):
        assert story.is_whole()


def _run(chain: Chain) -> AbstractContextManager[Run]:
    return under_way(chain.database, chain.home / "run", chain.name, {}, None)


def test_a_version_that_was_judged_again(story: Story) -> None:
    """With other cases: the gate lets the same adapter through, and the version is found again."""
    chain = story.chain
    evidence = {"training_id": chain.training_id, "dataset_id": chain.dataset_id}
    values = {"exact_match": ([0.0] * 40, [1.0] * 40)}
    conditions = [Condition(metric="exact_match", minimum_n=20)]
    again = judge(chain.adapter, "base", values, conditions, evidence=evidence)
    other = judge("other-1", "base", values, conditions, evidence=evidence)
    with chain.database.transaction() as session:
        add_verdict(session, again)
        add_verdict(session, other)
    made = {
        "dataset_id": chain.dataset_id,
        "training_id": chain.training_id,
        "version": chain.version,
    }
    with _run(chain) as run:
        run.note(**made, verdict_id=again.verdict_id)
    assert story.is_whole()
    edit(chain, "UPDATE run SET verdict_id = ?", again.verdict_id)
    assert "no run of the pipeline is known to have made it" in told(story.check())
    edit(chain, "UPDATE run SET verdict_id = ?", chain.verdict_id)
    assert story.is_whole()
    with _run(chain) as run:
        run.note(**made, verdict_id=other.verdict_id)
    expected = f"run {run.run_id}: it names no verdict on {chain.adapter}"
    assert expected in told(story.check())


def test_two_models_one_alias(story: Story, tmp_path: Path) -> None:
    """One after another: what answered before belongs to the other model."""
    first = story.chain
    second = write_chain(tmp_path, name=f"{first.name}-2", tracking_uri=story.tracking_uri)
    asyncio.run(story.back())
    order = Promotion(alias=first.name, name=second.name, version=second.version, **MOVE)
    asyncio.run(promote(story.services, order))
    log(first, [_asked(first, second.adapter)])
    follow_up(first.database, Registry(story.tracking_uri))
    folders = {one.dataset_id: one.dataset_path for one in (first, second)}
    sources = replace(
        sources_of(first, story.tracking_uri), fetch=lambda name, dataset_id: folders[dataset_id]
    )
    for name in (None, first.name, second.name):
        report = check(sources, name)
        assert report.whole, (name, told(report))
    champion = check_champion(sources, second.name)
    assert champion.versions == (f"{second.name}/1",)
    assert champion.whole
    assert check_champion(sources, first.name).versions == ()
    edit(first, "DELETE FROM experiment WHERE alias = ?", second.name)  # no business of the first's
    assert check(sources, first.name).whole
    for name in (None, second.name):
        assert f"experiment {second.experiment_id}" in told(check(sources, name))
    second.database.close()


def _asked(chain: Chain, adapter: str) -> Asked:

    (case,) = training_pool(7, 1)
    return Asked(case, "somebody", None, {"variant": "champion", "adapter": adapter})


def test_one_version_and_the_champion(story: Story) -> None:
    chain, name = story.chain, story.chain.name
    sources = sources_of(chain, story.tracking_uri)
    for report in (check_one(sources, name, "1"), check_champion(sources, name)):
        assert report.versions == (f"{name}/1",)
        assert report.whole, told(report)
        names = {f"{link.of} → {link.to}" for link in report.links}
        assert f"promotion {chain.promotion_id} → experiment {chain.experiment_id}" in names
        assert f"training {chain.training_id} → dataset {chain.dataset_id}" in names
    edit(chain, "DELETE FROM feedback WHERE feedback_id = ?", chain.feedback[0])
    for report in (check_one(sources, name, "1"), check_champion(sources, name)):
        assert f"feedback {chain.feedback[0]}" in told(report)
    unknown = check_one(sources, name, "7")
    assert f"registry → model_version {name}/7" in told(unknown)
    with pytest.raises(NotFound, match="no model 'nobody'"):
        check_champion(sources, "nobody")


def test_an_installation_without_a_model(tmp_path: Path, mlflow_server: MLflowServer) -> None:
    chain = write_chain(tmp_path, name="empty")
    for table in ("promotion", "experiment", "run", "model_version", "audit", "split"):
        edit(chain, f"DELETE FROM {table}")
    sources = sources_of(chain, mlflow_server.url)
    assert "requests were answered with it, no version has it" in told(check(sources))
    with pytest.raises(NotFound, match="there are: none"):
        check(sources, "empty")
    for path in (chain.home / "spool").glob("*.seg"):
        path.unlink()
    fresh = replace(sources, reader=type(chain.reader)(tmp_path / "spool", str(tmp_path / "log")))
    report = check(fresh)
    assert report.whole
    assert report.summary == "no model version: 0 links, all there"
    chain.database.close()
