"""The lineage check of approvals: a win that waits has its request, a grant its move, and both say
what the audit trail says."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import AuditRow
from pipelines.approval import GRANTED, OPEN
from pipelines.experiment import WON
from pipelines.lineage_findings import DISAGREE, RESTORE, Findings, differences
from pipelines.tables import ApprovalRow, ExperimentRow, PromotionRow

ASKED = "approval.ask"


def check_asked(session: Session, findings: Findings, row: ExperimentRow) -> None:
    """That an experiment which was won has asked for leave."""
    if row.state != WON:
        return
    query = select(ApprovalRow).where(ApprovalRow.experiment_id == row.experiment_id)
    asked = session.scalars(query).all()
    gone = [] if asked else [f"it was won, and no request for leave names it; {RESTORE}"]
    found = ", ".join(one.approval_id for one in asked)
    findings.judged(f"experiment {row.experiment_id}", "approval", gone, found)
    for one in asked:
        _check_approval(session, findings, one)


def check_granted(session: Session, findings: Findings, row: PromotionRow, entry: AuditRow) -> None:
    """That a promotion which rests on somebody's leave has it."""
    told = (entry.evidence or {}).get("approval_id")
    query = select(ApprovalRow).where(ApprovalRow.promotion_id == row.promotion_id)
    approval = session.scalars(query).first()
    if told is None and approval is None:
        return
    of = f"promotion {row.promotion_id}"
    if approval is None:
        findings.broken(of, f"approval {told}", f"no grant names this move; {RESTORE}")
        return
    expected = {
        "approval_id": told,
        "state": GRANTED,
        "alias": row.alias,
        "name": row.name,
        "version": row.to_version,
        "experiment_id": row.experiment_id,
        "verdict_id": row.verdict_id,
        "decided_by": row.actor,
        "reason": row.reason,
    }
    found = {name: getattr(approval, name) for name in expected}
    problems = differences(expected, found)
    to = f"approval {approval.approval_id}"
    findings.judged(of, to, problems, f"by {approval.decided_by}", DISAGREE)
    _check_approval(session, findings, approval)


def _check_approval(session: Session, findings: Findings, row: ApprovalRow) -> None:
    """That the audit trail says how it was asked for and how it ended."""
    of = f"approval {row.approval_id}"
    trail = select(AuditRow).where(AuditRow.subject == of.replace(" ", ":"))
    entries = {entry.action: entry for entry in session.scalars(trail)}
    asked: dict[str, Any] = {"actor": row.asked_by, "reason": row.asked_for}
    expected = {ASKED: asked}
    if row.state != OPEN:
        expected[f"approval.{row.state}"] = {"actor": row.decided_by, "reason": row.reason}
    for action, said in expected.items():
        entry = entries.get(action)
        if entry is None:
            findings.broken(
                of, f"audit row {action}", f"the audit trail says nothing of it; {RESTORE}"
            )
            continue
        said |= {"alias": row.alias, "name": row.name, "version": row.version}
        said |= {"experiment_id": row.experiment_id, "verdict_id": row.verdict_id}
        told = {"actor": entry.actor, "reason": entry.reason}
        problems = differences(said, {**(entry.after or {}), **(entry.evidence or {}), **told})
        findings.judged(of, f"audit row {action}", problems, entry.id, DISAGREE)
