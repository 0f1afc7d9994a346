"""The lineage check of what an experiment's verdict rests on: its users, counted once more."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.feedback import FeedbackRow
from gateway.request_log import LogReader
from pipelines.lineage_erasures import Excuses
from pipelines.lineage_findings import Findings
from pipelines.losses import probability_of
from pipelines.observations import UNIT
from pipelines.plan import Plan
from pipelines.tables import ExperimentRow


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: the arm and the unit it was of, when it came, what it answered."""

    arm: str
    unit: str
    at: datetime
    probability: float | None


Requests = Mapping[tuple[str, str], _Asked]


def check_heard(
    reader: LogReader, session: Session, findings: Findings, row: ExperimentRow, excuses: Excuses
) -> None:
    """That at least as many users of each arm are there as the verdict was given on.

    More may be there: requests and feedback that came while the verdict was being written.
    """
    verdict = None if row.verdict_id is None else session.get(VerdictRow, row.verdict_id)
    if verdict is None:
        return
    plan = Plan.model_validate(row.plan)
    requests = _requests(reader, row, plan)
    heard = _heard(session, requests, plan, (row, verdict.created_at))
    counts = {"requests": ("assigned", _assigned(requests)), "feedback": ("users", heard)}
    lost: dict[str, int] = {}
    for evidence, counted in counts.values():
        for arm, recorded in verdict.evidence.get(evidence, {}).items():
            lost[arm] = max(lost.get(arm, 0), recorded - counted.get(arm, 0))
    why = None
    if any(lost.values()):
        why = excuses.users(row.started_at, sum(lost.values())) or excuses.expired(
            row.experiment_id
        )
    for what, (evidence, counted) in counts.items():
        for arm, recorded in verdict.evidence.get(evidence, {}).items():
            link = f"verdict {row.verdict_id}", f"{what} of {arm} users"
            _tell(findings, link, (counted.get(arm, 0), recorded), why)


def _tell(
    findings: Findings, link: tuple[str, str], users: tuple[int, int], why: str | None
) -> None:
    there, recorded = users
    if there >= recorded:
        findings.ok(*link, f"{recorded} users")
    elif why is not None:
        findings.erased(*link, f"{there} of {recorded} users: {why}")
    else:
        gone = "what the others sent or said is gone, and no erasure order covers it; restore "
        gone += "database or log from a copy"
        findings.broken(*link, f"{there} of {recorded} users are there: {gone}")


def _requests(reader: LogReader, row: ExperimentRow, plan: Plan) -> Requests:
    """The experiment's requests, by tenant and either of their ids."""
    answers = plan.loss is not None
    found = reader.select(
        f"SELECT tenant, request_id, upstream_id, variant, {UNIT}, ts,"
        f" {'response' if answers else 'NULL'} FROM requests"
        " WHERE experiment = ? AND variant IS NOT NULL",
        [row.experiment_id],
        bodies=answers,
    )
    requests: dict[tuple[str, str], _Asked] = {}
    for tenant, request_id, upstream_id, arm, unit, at, response in found.rows:
        asked = _Asked(arm, unit, at, probability_of(response) if answers else None)
        requests[tenant, request_id] = asked
        if upstream_id is not None:
            requests.setdefault((tenant, upstream_id), asked)
    return requests


def _assigned(requests: Requests) -> dict[str, int]:
    """Users with a request, by arm."""
    users = {(one.arm, tenant, one.unit) for (tenant, _), one in requests.items()}
    return Counter(arm for arm, _, _ in users)


def _heard(
    session: Session,
    requests: Requests,
    plan: Plan,
    until: tuple[ExperimentRow, datetime],
) -> dict[str, int]:
    """Users with enough feedback, by arm; those who were in both arms are left out."""
    experiment, at = until
    query = select(
        FeedbackRow.tenant,
        FeedbackRow.request_id,
        FeedbackRow.reference,
        FeedbackRow.value,
        FeedbackRow.created_at,
    ).where(
        FeedbackRow.metric_name == plan.metric,
        FeedbackRow.created_at >= experiment.started_at,
        FeedbackRow.created_at <= at,
    )
    pieces: dict[str, dict[tuple[str, str], int]] = {}
    for tenant, request_id, reference, value, said_at in session.execute(query):
        asked = requests.get((tenant, request_id or reference))
        if asked is None or not plan.in_time(asked.at, said_at) or plan.matures_at(asked.at) > at:
            continue
        if plan.scaled(value, asked.probability) is not None:
            units = pieces.setdefault(asked.arm, {})
            units[tenant, asked.unit] = units.get((tenant, asked.unit), 0) + 1
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
