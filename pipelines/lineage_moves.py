"""The lineage check of what moved traffic: promotions, experiments, verdicts on them, the log.

Each promotion and experiment has its audit row and each such audit row its promotion or experiment,
so that neither can vanish alone. What the log says of adapters and experiments is what the state
database says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.audit import AuditRow
from gateway.request_log import LogReader
from gateway.splits import find_split
from pipelines.champion import (
    CHALLENGER,
    CHAMPION,
    MOVING,
    RUNNING,
    adapter_of,
    champion_of,
    find_version,
)
from pipelines.experiment import PROMOTED, STOPPED
from pipelines.lineage_findings import Findings, Sources, differences
from pipelines.tables import ExperimentRow, ModelVersionRow, PromotionRow

RESTORE = "restore the state database from a copy"
MOVES = ("champion.promote", "champion.rollback")
BEGUN = "experiment.start"


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests of an alias in the log that had an adapter or took part in an experiment."""

    alias: str
    experiment: str | None
    variant: str | None
    adapter: str | None
    requests: int


def answered(reader: LogReader, aliases: Sequence[str]) -> list[Answered]:
    """What the log says of them, counted."""
    if not aliases:
        return []
    found = reader.select(
        "SELECT model, experiment, variant, adapter, count(*) FROM requests"
        " WHERE model IN (SELECT unnest(?::VARCHAR[]))"
        " AND (experiment IS NOT NULL OR adapter IS NOT NULL) GROUP BY ALL ORDER BY ALL",
        [list(aliases)],
    )
    return [Answered(*row) for row in found.rows]


def check_audit(session: Session, findings: Findings, aliases: Sequence[str]) -> None:
    """That what the audit trail tells of is there."""
    for alias in aliases:
        query = select(AuditRow).where(
            AuditRow.action.in_(MOVES), AuditRow.subject == f"alias:{alias}"
        )
        for row in session.scalars(query.order_by(AuditRow.id)):
            promotion_id = (row.evidence or {}).get("promotion_id")
            if promotion_id and session.get(PromotionRow, promotion_id) is None:
                told = f"not in the state database, but audit row {row.id} tells of it; {RESTORE}"
                findings.broken(f"model {alias}", f"promotion {promotion_id}", told)
    begun = select(AuditRow).where(AuditRow.action == BEGUN).order_by(AuditRow.id)
    for row in session.scalars(begun):
        alias, experiment_id = str((row.after or {}).get("alias")), row.subject.partition(":")[2]
        if alias in aliases and session.get(ExperimentRow, experiment_id) is None:
            told = f"not in the state database, but audit row {row.id} tells of it; {RESTORE}"
            findings.broken(f"model {alias}", f"experiment {experiment_id}", told)


def check_promotion(session: Session, findings: Findings, row: PromotionRow) -> None:
    """A move of an alias: its audit row, version, experiment and verdict."""
    of = f"promotion {row.promotion_id}"
    trail = select(AuditRow).where(
        AuditRow.action == f"champion.{row.kind}", AuditRow.subject == f"alias:{row.alias}"
    )
    told = [
        entry
        for entry in session.scalars(trail)
        if (entry.evidence or {}).get("promotion_id") == row.promotion_id
    ]
    if told:
        problems = differences({"version": row.to_version}, told[0].after or {})
        findings.judged(of, f"audit row {told[0].id}", problems, f"by {row.actor}")
    else:
        findings.broken(of, "audit row", f"the audit trail says nothing of it; {RESTORE}")
    if row.to_version is not None:
        _check_there(session, findings, of, (ModelVersionRow, (row.name, row.to_version)))
    if row.experiment_id is not None:
        _check_there(session, findings, of, (ExperimentRow, row.experiment_id))
    if row.verdict_id is not None:
        _check_there(session, findings, of, (VerdictRow, row.verdict_id))


def check_experiment(
    session: Session, findings: Findings, row: ExperimentRow, log: Sequence[Answered]
) -> None:
    """An experiment: its audit rows, arms, verdict and promotion, and what the log says of it."""
    of = f"experiment {row.experiment_id}"
    for action in (BEGUN, *([] if row.state == RUNNING else [f"experiment.{row.state}"])):
        trail = select(AuditRow.id).where(AuditRow.action == action)
        found = session.scalars(trail.where(AuditRow.subject == f"experiment:{row.experiment_id}"))
        audit_id = found.first()
        missing = [f"the audit trail says nothing of it; {RESTORE}"]
        findings.judged(of, f"audit row {action}", [] if audit_id else missing, audit_id or "")
    if row.version is not None:
        _check_there(session, findings, of, (ModelVersionRow, (row.name, row.version)))
    _check_arms(session, findings, row, log)
    _check_verdict(session, findings, row)
    if row.state == PROMOTED:
        query = select(PromotionRow.promotion_id)
        query = query.where(PromotionRow.experiment_id == row.experiment_id)
        promotion_id = session.scalars(query).first()
        missing = [f"it ended as promoted, and no promotion names it; {RESTORE}"]
        findings.judged(of, "promotion", [] if promotion_id else missing, promotion_id or "")


def check_alias(sources: Sources, session: Session, findings: Findings, alias: str) -> None:
    """That traffic and MLflow's alias are where the promotions say."""
    of, champion = f"model {alias}", champion_of(session, alias)
    if champion.last is None:
        return
    adapter = adapter_of(session, champion.last.name, champion.version)
    split = find_split(session, alias)
    arms = {} if split is None else {arm.variant.name: arm.variant.adapter for arm in split.arms}
    problems = []
    if arms.get(CHAMPION) != adapter or (split is None and adapter is not None):
        problems.append(
            f"its traffic goes to {arms.get(CHAMPION) or 'the base model'}, the champion is "
            f"{adapter or 'the base model'}; promote or roll back once more"
        )
    findings.judged(of, "split", problems, adapter or "base")
    with findings.asking_mlflow():
        said = sources.mlflow.aliases(champion.last.name).get(CHAMPION)
        problems = differences({CHAMPION: champion.version}, {CHAMPION: said})
        if problems and champion.last.state == MOVING:
            problems.append("the controller is still to tell MLflow: see that it runs, wait")
        findings.judged(of, "MLflow alias champion", problems, champion.version or "base")


def check_log(
    session: Session, findings: Findings, names: Sequence[str], log: Sequence[Answered]
) -> None:
    """That every adapter and experiment in the log is known."""
    for one in log:
        of = f"requests on {one.alias}"
        if one.experiment is not None:
            there = session.get(ExperimentRow, one.experiment) is not None
            gone = f"{one.requests} requests took part in it, the database has none; {RESTORE}"
            findings.judged(of, f"experiment {one.experiment}", [] if there else [gone])
        if one.adapter is not None:
            query = select(ModelVersionRow.version).where(
                ModelVersionRow.adapter == one.adapter, ModelVersionRow.name.in_(names)
            )
            known = session.scalars(query).first()
            gone = f"{one.requests} requests were answered with it, no version has it; {RESTORE}"
            findings.judged(of, f"adapter {one.adapter}", [] if known else [gone], known or "")


def _check_there(
    session: Session, findings: Findings, of: str, wanted: tuple[type[Any], Any]
) -> None:
    table, key = wanted
    identifier = "/".join(key) if isinstance(key, tuple) else key
    there = session.get(table, key) is not None
    gone = [f"not in the state database; {RESTORE}"]
    findings.judged(of, f"{table.__tablename__} {identifier}", [] if there else gone)


def _check_arms(
    session: Session, findings: Findings, row: ExperimentRow, log: Sequence[Answered]
) -> None:
    """That the log's requests of it carry its arms, and each its own adapter."""
    of = f"experiment {row.experiment_id}"
    arms = {arm["variant"]["name"]: arm["variant"]["adapter"] for arm in row.arms}
    problems = []
    candidate = find_version(session, row.name, row.version)
    if candidate is not None:
        problems += differences({CHALLENGER: candidate.adapter}, arms)
    seen: dict[str, int] = dict.fromkeys(arms, 0)
    for one in log:
        if one.experiment != row.experiment_id:
            continue
        if one.variant is None or one.adapter != arms.get(one.variant, "no such arm"):
            problems.append(
                f"{one.requests} requests in the log are arm {one.variant} with adapter "
                f"{one.adapter or 'none'}, which it does not have"
            )
        else:
            seen[one.variant] += one.requests
    said = ", ".join(f"{count} {arm}" for arm, count in seen.items())
    findings.judged(of, "arms", problems, said)


def _check_verdict(session: Session, findings: Findings, row: ExperimentRow) -> None:
    of = f"experiment {row.experiment_id}"
    if row.verdict_id is None:
        decided = row.state not in (RUNNING, STOPPED)
        gone = [f"it ended as {row.state} without a verdict; {RESTORE}"]
        findings.judged(of, "verdict", gone if decided else [], row.state)
        return
    verdict = session.get(VerdictRow, row.verdict_id)
    to = f"verdict {row.verdict_id}"
    if verdict is None:
        findings.broken(of, to, f"not in the state database; {RESTORE}")
        return
    told: Mapping[str, Any] = verdict.evidence
    problems = differences({"experiment_id": row.experiment_id, "version": row.version}, dict(told))
    if (verdict.decision == "promote") != (row.state == PROMOTED):
        problems.append(f"it says {verdict.decision}, the experiment ended as {row.state}")
    findings.judged(of, to, problems, verdict.decision)
