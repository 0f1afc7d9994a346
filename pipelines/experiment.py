"""Experiments on live traffic: a candidate beside the champion, on a share of an alias's users.

Invariants: one experiment per alias at a time (the database sees to it). Nothing gets traffic that
is not served on every replica. An experiment begins, and ends, in one transaction: its row, the
split, the verdict, the promotion and the audit rows are there together or not at all. It ends once:
whoever comes second finds it ended and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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
from gateway.splits import find_split, put_split
from gateway.variants import PROMPT_SPLIT, Arm, Split, Variant
from pipelines.approval import AUTOMATIC, MANUAL, Request, ask
from pipelines.champion import (
    PROMOTE,
    ROLLBACK,
    RUNNING,
    Move,
    Services,
    find_version,
    hold,
    new_salt,
    running_experiment,
    running_experiments,
)
from pipelines.findings import Finding, find, overdue, verdict_of
from pipelines.model_title import ModelTitle
from pipelines.observations import Observations
from pipelines.plan import Plan
from pipelines.prompt_title import PromptTitle
from pipelines.tables import ExperimentRow
from pipelines.title import Entrants, Title

PROMOTED, HELD, ROLLED_BACK, STOPPED = "promoted", "held", "rolled_back", "stopped"
WON = "won"  # to be promoted, once a person says so
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
        approval: `manual`: if it wins, a person is asked whether it is promoted.
    """

    alias: str
    name: str
    version: str | None
    plan: Plan
    actor: str
    unjudged: str | None = None
    approval: str = AUTOMATIC


@dataclass(frozen=True, slots=True)
class Ending:
    """How an experiment ends. `verdict` is None where it was stopped by hand."""

    state: str
    message: str
    actor: str
    verdict: Verdict | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


def title_of(alias: str) -> Title:
    """The title that an experiment on `alias` is about: a prompt's, or a model's."""
    return PromptTitle(alias) if alias.startswith(PROMPT_SPLIT) else ModelTitle(alias)


async def start(services: Services, trial: Trial) -> ExperimentRow:
    """Begin an experiment, once every replica serves what its arms need.

    Raises:
        NotFound: no such version.
        Conflict: an experiment is under way on the alias, the candidate's lineage has gaps, or it
            is the champion already.
        RolloutFailed: an adapter cannot be loaded on every replica.
    """
    title = title_of(trial.alias)
    with services.database.session() as session:
        seen = _entrants(session, title, trial)
    if seen.holder is None and not services.plain:
        raise Conflict(f"{trial.alias}: no version answers it yet; promote a first one")
    await _load(services, seen.adapters)
    with services.database.transaction() as session:
        hold(session)
        if title.holder(session) != seen.holder:
            raise Conflict(f"{trial.alias}: its champion was moved meanwhile; start again")
        row = _begin(session, trial, _entrants(session, title, trial), new_salt())
    await _load(services, seen.adapters)  # from the commit on, the controller keeps them there
    return row


def examine(
    experiment: ExperimentRow, observations: Observations, before: Finding | None = None
) -> Finding:
    """How a running experiment stands now. `before`: what was found last, as good while nothing
    was heard and its time is not up: intervals take a tenth of a second."""
    observed, at = observations.refresh(), now()
    if before is not None and before.observed == observed and not overdue(experiment, at):
        return before
    finding = find(experiment, observed, at)
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
        candidate = find_version(session, row.name, row.version)  # None of a prompt's
        subjects = title_of(row.alias).subjects(session, row)
    if row.state != RUNNING:
        return row
    verdict = verdict_of(row, finding, subjects)
    if candidate is not None and verdict.decision is Decision.PROMOTE:
        await services.replicas.load(candidate.served_name, Path(candidate.path))
    with services.database.transaction() as session:
        hold(session)
        row = find_experiment(session, experiment_id)
        ending = Ending(_end_of(row, verdict), finding.reason, CONTROLLER, verdict)
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


def stop_running(session: Session, alias: str, reason: str, actor: str) -> str | None:
    """Stop what is under way on `alias`, in the caller's transaction under `hold`; its id."""
    row = running_experiment(session, alias)
    if row is None:
        return None
    end(session, row, Ending(STOPPED, reason, actor))
    return row.experiment_id


def end(session: Session, row: ExperimentRow, ending: Ending) -> None:
    """End a running experiment in the caller's transaction, under `hold`, with its audit row.

    Where it is promoted, the candidate gets the title, and a watch on it begins if the plan says
    so. Where a watch finds it bad, the title goes back. Else all traffic goes to who has it; where
    the candidate has won, a person is asked whether it is promoted.
    """
    title, plan = title_of(row.alias), Plan.model_validate(row.plan)
    if ending.verdict is not None:
        add_verdict(session, ending.verdict)
        row.verdict_id = ending.verdict.verdict_id
    before = row.state
    row.state, row.message, row.ended_at = ending.state, ending.message, now()
    session.flush()
    move = _move(title, session, row, ending)
    record(
        session,
        Change(
            actor=ending.actor,
            action=f"experiment.{ending.state}",
            subject=f"experiment:{row.experiment_id}",
            reason=ending.message,
            before={"state": before},
            after={"state": row.state, "alias": row.alias, "version": row.version},
            evidence=_evidence(row, ending),
        ),
    )
    if move is None:
        if row.state == WON:
            ask(session, _request(row, ending))
        title.give_all_traffic(session)
        return
    split = find_split(session, row.alias)
    title.move(session, move)
    if move.kind == PROMOTE and plan.holdback and split is not None:
        _watch(session, row, plan, split)


def watch_winner(session: Session, experiment_id: str) -> None:
    """Watch what `end` did not promote, now that a person did, if the plan says so. Works in the
    caller's transaction, after the move."""
    row = find_experiment(session, experiment_id)
    plan, split = Plan.model_validate(row.plan), find_split(session, row.alias)
    if plan.holdback and split is not None:
        arms = tuple(Arm(Variant(**arm["variant"]), arm["weight"]) for arm in row.arms)
        _watch(session, row, plan, replace(split, arms=arms))


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


def latest(database: Database, alias: str | None, limit: int = 10) -> list[ExperimentRow]:
    """The newest experiments on `alias` (None: on all), newest first."""
    query = select(ExperimentRow).order_by(ExperimentRow.experiment_id.desc()).limit(limit)
    if alias is not None:
        query = query.where(ExperimentRow.alias == alias)
    with database.session() as session:
        return list(session.scalars(query))


async def _load(services: Services, needed: Mapping[str, Path]) -> None:
    for adapter, path in needed.items():
        await services.replicas.load(adapter, path)


def _entrants(session: Session, title: Title, trial: Trial) -> Entrants:
    """Both sides of what is to be tried; raises what `start` raises."""
    running = running_experiment(session, trial.alias)
    if running is not None:
        raise Conflict(
            f"{trial.alias}: experiment {running.experiment_id} is under way since "
            f"{_at(running.started_at)}; one at a time: wait for its end, or stop it"
        )
    return title.entrants(session, trial.name, trial.version, trial.unjudged)


def _begin(session: Session, trial: Trial, entrants: Entrants, salt: str) -> ExperimentRow:
    arms = (
        Arm(entrants.champion, 1 - trial.plan.weight),
        Arm(entrants.challenger, trial.plan.weight),
    )
    experiment_id = str(uuid_utils.uuid7())
    split = Split(trial.alias, arms, experiment_id, salt)
    put_split(session, split)
    row = ExperimentRow(
        experiment_id=experiment_id,
        alias=trial.alias,
        name=trial.name,
        version=entrants.version,
        state=RUNNING,
        arms=split.as_dict()["arms"],
        plan=trial.plan.model_dump(mode="json"),
        approval=trial.approval,
        started_at=now(),
    )
    session.add(row)
    session.flush()
    record(
        session,
        Change(
            actor=trial.actor,
            action="experiment.start",
            subject=f"experiment:{experiment_id}",
            reason=trial.unjudged,
            after={
                "alias": trial.alias,
                "arms": row.arms,
                "plan": row.plan,
                "approval": row.approval,
            },
            evidence=dict(entrants.evidence),
        ),
    )
    return row


def _watch(session: Session, won: ExperimentRow, plan: Plan, split: Split) -> None:
    """Let some users of the former champion stay with it, to see what the new one does to others.

    An experiment of its own, between the same arms, in which the candidate can only lose. It keeps
    the salt: who had the candidate has it still.
    """
    former, candidate = (arm.variant for arm in split.arms)
    evidence = {"watches": won.experiment_id, "champion_version": won.version}
    entrants = Entrants(won.version, won.version, former, candidate, evidence=evidence)
    trial = Trial(won.alias, won.name, won.version, plan.watching(won.experiment_id), CONTROLLER)
    _begin(session, trial, entrants, split.salt)


def _end_of(row: ExperimentRow, verdict: Verdict) -> str:
    end = ENDS[verdict.decision]
    return WON if end == PROMOTED and row.approval == MANUAL else end


def _request(row: ExperimentRow, ending: Ending) -> Request:
    assert row.version is not None  # an A/A is not won
    return Request(
        alias=row.alias,
        name=row.name,
        version=row.version,
        actor=ending.actor,
        reason=ending.message,
        experiment_id=row.experiment_id,
        verdict_id=row.verdict_id,
    )


def _move(title: Title, session: Session, row: ExperimentRow, ending: Ending) -> Move | None:
    """What the end of an experiment does to the title; None: nothing."""
    if ending.state == PROMOTED:
        kind, version = PROMOTE, row.version
    elif ending.state == ROLLED_BACK and Plan.model_validate(row.plan).watches is not None:
        kind, version = ROLLBACK, title.previous(session)
    else:
        return None
    return Move(
        kind=kind,
        alias=row.alias,
        name=row.name,
        to_version=version,
        actor=ending.actor,
        reason=ending.message,
        experiment_id=row.experiment_id,
        verdict_id=row.verdict_id,
        evidence=_evidence(row, ending),
    )


def _evidence(row: ExperimentRow, ending: Ending) -> dict[str, Any]:
    verdict = ending.verdict
    measured = {} if verdict is None else {"metrics": [asdict(one) for one in verdict.metrics]}
    return {"verdict_id": row.verdict_id, **measured, **ending.evidence}


def _at(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
