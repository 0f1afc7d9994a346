"""Lineage of a win that waited for a person: seen from any id, and no part of it goes unnoticed."""

from typing import Any

from gateway.lineage import Links, lineage
from pipelines.approval import MANUAL, listed
from pipelines.approval_links import ApprovalLinks
from pipelines.approval_orders import Order, grant, refuse
from pipelines.experiment import Trial, start
from pipelines.lineage_links import PipelineLinks
from pipelines.plan import Plan
from pipelines.tables import ApprovalRow, ExperimentRow
from tests.pipelines.lifecycle_rows import METRICS
from tests.pipelines.lineage_damage import edit, told
from tests.pipelines.test_lineage_states import Story, story  # noqa: F401 - a fixture


async def won(story: Story) -> tuple[ExperimentRow, ApprovalRow]:  # noqa: F811
    """An experiment of the chain's version that asks a person, and its request."""
    await story.back()
    plan = Plan.model_validate({"metric": "helpful", "minimum_users": 10, "maximum_users": 400})
    name, version = story.chain.name, story.chain.version
    trial = Trial(name, name, version, plan.settled(METRICS), "anna", approval=MANUAL)
    row = await start(story.services, trial)
    story.hear(row, {"champion": False, "challenger": True})
    assert (await story.end(row)).state == "won"
    return row, requests(story)[0]


def requests(story: Story) -> list[ApprovalRow]:  # noqa: F811
    with story.chain.database.session() as session:
        return list(listed(session, None, 10))


def broken_by(story: Story, statement: str, *values: Any) -> str:  # noqa: F811
    """What the check says of a cut, which is mended again by a copy of the rows."""
    with story.chain.database.session() as session:
        saved = session.get_one(ApprovalRow, requests(story)[0].approval_id)
        kept = {
            column.name: getattr(saved, column.name) for column in ApprovalRow.__table__.columns
        }
    assert edit(story.chain, statement, *values) >= 1
    said = told(story.check())
    with story.chain.database.transaction() as session:
        session.merge(ApprovalRow(**kept))
    return said


async def test_a_win_that_waits_is_granted_and_followed(story: Story) -> None:  # noqa: F811
    row, request = await won(story)
    assert story.is_whole()
    assert "no request for leave names it" in broken_by(story, "DELETE FROM approval")
    await grant(story.services, Order(request.approval_id, "cli:ben", "looks right"))
    assert story.is_whole()
    links: list[Links] = [PipelineLinks(story.chain.database), ApprovalLinks(story.chain.database)]
    found = lineage(request.approval_id, links)
    (promotion,) = [one.promotion_id for one in requests(story)]
    of = f"approval:{request.approval_id}"
    edges = {(one.effect, one.relation, one.cause) for one in found.edges}
    assert (of, "asked because of", f"experiment:{row.experiment_id}") in edges
    assert (f"promotion:{promotion}", "granted by", of) in edges
    assert f"training:{story.chain.training_id}" in found.nodes
    assert (
        of in lineage(str(promotion), links).nodes and of in lineage(row.experiment_id, links).nodes
    )
    for column in ("alias", "name", "version", "state", "decided_by", "reason", "verdict_id"):
        assert broken_by(story, f"UPDATE approval SET {column} = 'other'"), column
    assert "no grant names this move" in broken_by(story, "DELETE FROM approval")
    edit(story.chain, "DELETE FROM audit WHERE action = 'approval.granted'")
    assert "audit row approval.granted: the audit trail says nothing" in told(story.check())


async def test_a_refusal_is_no_gap(story: Story) -> None:  # noqa: F811
    _, request = await won(story)
    refuse(story.chain.database, Order(request.approval_id, "cli:ben", "not yet"))
    assert story.is_whole()
    assert broken_by(story, "UPDATE approval SET decided_by = 'cli:eve'")
