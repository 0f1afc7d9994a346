"""Experiments on live traffic: a candidate beside the champion, on a share of an alias's users.

Invariants: one experiment per alias at a time (the database sees to it). Nothing gets traffic that
is not served on every replica. An experiment begins, and ends, in one transaction: its row, the
split, the verdict, the promotion and the audit rows are there together or not at all. It ends once:
whoever comes second finds it ended and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import uuid_utils
from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.records import Decision, Verdict
from evals.verdicts import add_verdict
from gateway.audit import Change, record, require_reason
from gateway.database import Conflict, Database, now
from gateway.errors import NotFound
from gateway.splits import put_split
from gateway.variants import Arm, Split, Variant
from pipelines.candidate import lineage_of, require_candidate
from pipelines.champion import (
    CHALLENGER,
    CHAMPION,
    PROMOTE,
    RUNNING,
    Champion,
    Move,
    Services,
    champion_of,
    find_version,
    give_all_traffic,
    hold,
    move_champion,
    new_salt,
    running_experiment,
    running_experiments,
)
from pipelines.findings import Finding, find, verdict_of
from pipelines.observations import Observations
from pipelines.plan import Plan
from pipelines.tables import ExperimentRow, ModelVersionRow

PROMOTED, HELD, ROLLED_BACK, STOPPED = "promoted", "held", "rolled_back", "stopped"
ENDS: Mapping[Decision, str] = {
    Decision.PROMOTE: PROMOTED,
    Decision.REJECT: ROLLED_BACK,
    Decision.HOLD: HELD,
    Decision.ALERT: HELD,
}
CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be tried.

    Attributes:
        name: registered model; version: the candidate; None: the champion against itself (A/A).
        plan: settled against the declared metrics.
        unjudged: why a candidate without a passing verdict may be tried, or None.
    """

    alias: str
    name: str
    version: str | None
    plan: Plan
    actor: str
    unjudged: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an experiment ends. `verdict` is None where it was stopped by hand."""

    state: str
    message: str
    actor: str
    verdict: Verdict | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


async def start(services: Services, trial: Trial) -> ExperimentRow:
    """Begin an experiment, once every replica serves what its arms need.

    Raises:
        NotFound: no such version.
        Conflict: an experiment is under way on the alias, the candidate's lineage has gaps, or it
            is the champion already.
        RolloutFailed: an adapter cannot be loaded on every replica.
    """
    with services.database.session() as session:
        champion = champion_of(session, trial.alias)
        needed = _adapters(session, trial, champion)
    await _load(services, needed)
    with services.database.transaction() as session:
        hold(session)
        if champion_of(session, trial.alias).version != champion.version:
            raise Conflict(f"{trial.alias}: its champion was moved meanwhile; start again")
        _adapters(session, trial, champion)
        row = _begin(session, trial, champion)
    await _load(services, needed)  # from the commit on, the controller keeps them there
    return row


def examine(experiment: ExperimentRow, observations: Observations) -> Finding:
    """How a running experiment stands now."""
    finding = find(experiment, observations.refresh(), now())
    if finding.decision is None:
        return finding
    return find(experiment, observations.refresh(count=True), now())


async def conclude(services: Services, experiment_id: str, finding: Finding) -> ExperimentRow:
    """End an experiment as `finding` says: traffic, verdict, state and audit in one transaction.

    Raises:
        NotFound: there is no such experiment.
        RolloutFailed: the candidate won, and is not served on every replica.
    """
    with services.database.session() as session:
        row = find_experiment(session, experiment_id)
        candidate = find_version(session, row.name, row.version)
    if row.state != RUNNING:
        return row
    verdict = verdict_of(row, finding)
    if candidate is not None and verdict.decision is Decision.PROMOTE:
        await services.replicas.load(candidate.adapter, Path(candidate.adapter_path))
    with services.database.transaction() as session:
        hold(session)
        row = find_experiment(session, experiment_id)
        ending = Ending(ENDS[verdict.decision], finding.reason, CONTROLLER, verdict)
        if row.state == RUNNING:
            end(session, row, ending)
    return row


def stop(database: Database, experiment_id: str, reason: str, actor: str) -> ExperimentRow:
    """End an experiment by hand; its users go back to the champion. Again changes nothing.

    Raises:
        BadRequest: no reason.
        NotFound: there is no such experiment.
        Conflict: it has ended by a decision.
    """
    require_reason(reason)
    with database.transaction() as session:
        hold(session)
        row = find_experiment(session, experiment_id)
        if row.state == RUNNING:
            end(session, row, Ending(STOPPED, reason, actor))
        elif row.state != STOPPED:
            raise Conflict(f"experiment {experiment_id} has ended already: {row.state}")
    return row


def end(session: Session, row: ExperimentRow, ending: Ending) -> None:
    """End a running experiment in the caller's transaction, under `hold`, with its audit row.

    Where it is promoted, the candidate becomes champion; else all traffic goes back.
    """
    verdict = ending.verdict
    if verdict is not None:
        add_verdict(session, verdict)
        row.verdict_id = verdict.verdict_id
    before = row.state
    row.state, row.message, row.ended_at = ending.state, ending.message, now()
    session.flush()
    measured = {} if verdict is None else {"metrics": [asdict(one) for one in verdict.metrics]}
    evidence = {"verdict_id": row.verdict_id, **measured, **ending.evidence}
    record(
        session,
        Change(
            actor=ending.actor,
            action=f"experiment.{ending.state}",
            subject=f"experiment:{row.experiment_id}",
            reason=ending.message,
            before={"state": before},
            after={"state": row.state, "alias": row.alias, "version": row.version},
            evidence=evidence,
        ),
    )
    if ending.state != PROMOTED:
        give_all_traffic(session, row.alias, _adapter(row, CHAMPION))
        return
    move = Move(
        kind=PROMOTE,
        alias=row.alias,
        name=row.name,
        to_version=row.version,
        actor=ending.actor,
        reason=ending.message,
        experiment_id=row.experiment_id,
        verdict_id=row.verdict_id,
        evidence=evidence,
    )
    move_champion(session, move)


def find_experiment(session: Session, experiment_id: str) -> ExperimentRow:
    """The experiment with this id; NotFound if there is none."""
    row = session.get(ExperimentRow, experiment_id)
    if row is None:
        raise NotFound(f"there is no experiment {experiment_id[:64]!r}", param="experiment_id")
    return row


def under_way(database: Database) -> list[ExperimentRow]:
    """All running experiments, oldest first."""
    with database.session() as session:
        return running_experiments(session)


def latest(database: Database, alias: str, limit: int = 10) -> list[ExperimentRow]:
    """The newest experiments on `alias`, newest first."""
    query = select(ExperimentRow).where(ExperimentRow.alias == alias)
    query = query.order_by(ExperimentRow.experiment_id.desc()).limit(limit)
    with database.session() as session:
        return list(session.scalars(query))


async def _load(services: Services, needed: Mapping[str, Path]) -> None:
    for adapter, path in needed.items():
        await services.replicas.load(adapter, path)


def _adapters(session: Session, trial: Trial, champion: Champion) -> dict[str, Path]:
    """What both arms need to be served; raises what `start` raises."""
    running = running_experiment(session, trial.alias)
    if running is not None:
        raise Conflict(
            f"{trial.alias}: experiment {running.experiment_id} is under way since "
            f"{_at(running.started_at)}; one at a time: wait for its end, or stop it"
        )
    if trial.version is not None and trial.version == champion.version:
        raise Conflict(
            f"{trial.name} version {trial.version} is the champion of {trial.alias} already"
        )
    champion.require_name(trial.name)
    rows: list[ModelVersionRow | None] = [find_version(session, trial.name, champion.version)]
    if trial.version is not None:
        rows.append(require_candidate(session, trial.name, trial.version, trial.unjudged))
    return {row.adapter: Path(row.adapter_path) for row in rows if row is not None}


def _begin(session: Session, trial: Trial, champion: Champion) -> ExperimentRow:
    baseline = find_version(session, trial.name, champion.version)
    candidate = baseline
    if trial.version is not None:
        candidate = find_version(session, trial.name, trial.version)
    arms = (
        Arm(Variant(CHAMPION, adapter=_served(baseline)), 1 - trial.plan.weight),
        Arm(Variant(CHALLENGER, adapter=_served(candidate)), trial.plan.weight),
    )
    experiment_id = str(uuid_utils.uuid7())
    split = Split(trial.alias, arms, experiment_id, new_salt())
    put_split(session, split)
    row = ExperimentRow(
        experiment_id=experiment_id,
        alias=trial.alias,
        name=trial.name,
        version=trial.version,
        state=RUNNING,
        arms=split.as_dict()["arms"],
        plan=trial.plan.model_dump(mode="json"),
        started_at=now(),
    )
    session.add(row)
    session.flush()
    known = {} if candidate is None else lineage_of(session, candidate)
    record(
        session,
        Change(
            actor=trial.actor,
            action="experiment.start",
            subject=f"experiment:{experiment_id}",
            reason=trial.unjudged,
            after={"alias": trial.alias, "arms": row.arms, "plan": row.plan},
            evidence={**known, "champion_version": champion.version},
        ),
    )
    return row


def _adapter(row: ExperimentRow, arm: str) -> str | None:
    return next(
        (one["variant"]["adapter"] for one in row.arms if one["variant"]["name"] == arm), None
    )


def _served(row: ModelVersionRow | None) -> str | None:
    return None if row is None else row.adapter


def _at(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
