"""The lineage check of what an experiment's verdict rests on: feedback, counted once more."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.feedback import FeedbackRow
from gateway.request_log import LogReader
from pipelines.lineage_erasures import Excuses
from pipelines.lineage_findings import Findings, Sources
from pipelines.observations import UNIT
from pipelines.plan import Plan
from pipelines.tables import ExperimentRow

Requests = Mapping[tuple[str, str], tuple[str, str]]


def check_heard(sources: Sources, session: Session, findings: Findings, row: ExperimentRow) -> None:
    """That at least as many users of each arm are there as the verdict was given on.

    More may be there: feedback that was given while the verdict was being written.
    """
    verdict = None if row.verdict_id is None else session.get(VerdictRow, row.verdict_id)
    if verdict is None:
        return
    plan = Plan.model_validate(row.plan)
    found = _heard(session, _requests(sources.reader, row), plan, (row, verdict.created_at))
    of = f"verdict {row.verdict_id}"
    for arm, recorded in verdict.evidence.get("users", {}).items():
        counted, to = found.get(arm, 0), f"feedback of {arm} users"
        if counted >= recorded:
            findings.ok(of, to, f"{recorded}")
            continue
        lost = recorded - counted
        excuses = Excuses.known(session, sources.retain_days)
        why = excuses.several(row.started_at, lost) or excuses.expired(row.experiment_id)
        if why is not None:
            findings.erased(of, to, f"{counted} of {recorded}: {why}")
        else:
            gone = "requests or feedback of the others are gone, and no erasure order covers them"
            findings.broken(of, to, f"{counted} of {recorded} are there: {gone}; restore them")


def _requests(reader: LogReader, row: ExperimentRow) -> Requests:
    """Arm and unit of each of the experiment's requests, by tenant and either of its ids."""
    found = reader.select(
        f"SELECT tenant, request_id, upstream_id, variant, {UNIT} FROM requests"
        " WHERE experiment = ? AND variant IS NOT NULL",
        [row.experiment_id],
    )
    requests: dict[tuple[str, str], tuple[str, str]] = {}
    for tenant, request_id, upstream_id, arm, unit in found.rows:
        requests[tenant, request_id] = (arm, unit)
        if upstream_id is not None:
            requests.setdefault((tenant, upstream_id), (arm, unit))
    return requests


def _heard(
    session: Session,
    requests: Requests,
    plan: Plan,
    until: tuple[ExperimentRow, datetime],
) -> dict[str, int]:
    """Users with enough feedback, by arm; those who were in both arms are left out."""
    experiment, at = until
    query = select(
        FeedbackRow.tenant, FeedbackRow.request_id, FeedbackRow.reference, FeedbackRow.value
    ).where(
        FeedbackRow.metric_name == plan.metric,
        FeedbackRow.created_at >= experiment.started_at,
        FeedbackRow.created_at <= at,
    )
    pieces: dict[str, dict[tuple[str, str], int]] = {}
    for tenant, request_id, reference, value in session.execute(query):
        place = requests.get((tenant, request_id or reference))
        if place is not None and plan.scaled(value) is not None:
            arm, unit = place
            units = pieces.setdefault(arm, {})
            units[tenant, unit] = units.get((tenant, unit), 0) + 1
    arms_of: dict[tuple[str, str], set[str]] = {}
    for arm, units in pieces.items():
        for unit_name in units:
            arms_of.setdefault(unit_name, set()).add(arm)
    return {
        arm: sum(
            count >= plan.feedback_per_user and len(arms_of[unit]) == 1
            for unit, count in units.items()
        )
        for arm, units in pieces.items()
    }
