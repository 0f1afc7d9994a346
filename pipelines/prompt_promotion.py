"""Orders of people about a prompt's labels: promote by a verdict, roll back, set any other label.

An experiment under way holds a promotion up; a rollback ends it.
"""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from evals.records import Decision, Verdict
from evals.verdicts import verdicts_on
from gateway.audit import require_reason
from gateway.database import Conflict, Database
from gateway.prompt_versions import PRODUCTION, PromptVersionRow, find_version, label_of
from gateway.variants import PROMPT_SPLIT
from pipelines.champion import hold, running_experiment
from pipelines.experiment import stop_running
from pipelines.prompt_labels import (
    LABEL,
    PROMOTE,
    ROLLBACK,
    LabelMove,
    Production,
    last_rollback,
    move_label,
    production_of,
    require_label,
    require_prompt,
    require_version,
    subject_of,
)


@dataclass(frozen=True, slots=True)
class LabelOrder:
    """An order to let a label name a version.

    Attributes:
        reason: mandatory: who reads the audit trail wants to know.
    """

    name: str
    version: str
    label: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class PromptRollback:
    """An order to go back to the production version before this one.

    Attributes:
        from_version: the version that is to go, where one was seen; then the order may be given
            again without going back twice. None: whichever it is.
    """

    name: str
    actor: str
    reason: str
    from_version: str | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """What an order came to.

    Attributes:
        before: what the label named; None where it was not set.
        repeated: nothing was changed: it had been done before.
        stopped: the experiment that ended with it, if one was under way.
    """

    name: str
    label: str
    version: str
    before: str | None
    repeated: bool = False
    stopped: str | None = None


def label(database: Database, order: LabelOrder) -> Labelled:
    """Let a label name a version. `production` only where the gate let that version through.

    Raises:
        BadRequest: no reason, or the label cannot be one.
        NotFound: there is no such prompt or version.
        Conflict: the gate did not let it through, or an experiment is under way.
    """
    require_reason(order.reason)
    require_label(order.label)
    with database.transaction() as session:
        hold(session)
        row = require_version(session, order.name, order.version)
        before = label_of(session, order.name, order.label)
        if before == row.version:
            return Labelled(order.name, order.label, row.version, before, repeated=True)
        verdict = _let_through(session, row, before) if order.label == PRODUCTION else None
        move = LabelMove(
            kind=LABEL if verdict is None else PROMOTE,
            name=order.name,
            version=row.version,
            actor=order.actor,
            reason=order.reason,
            label=order.label,
            verdict_id=None if verdict is None else verdict.verdict_id,
        )
        move_label(session, move)
    return Labelled(order.name, order.label, order.version, before)


def rollback(database: Database, order: PromptRollback) -> Labelled:
    """Go back to the production version before this one, and end an experiment that is under way.

    It needs nothing but the database; the gateway's workers follow within two seconds.

    Raises:
        BadRequest: no reason.
        NotFound: there is no such prompt.
        Conflict: there is nothing to go back to, or `production` is not what was seen.
    """
    require_reason(order.reason)
    with database.transaction() as session:
        hold(session)
        production = production_of(session, order.name)
        if production.version is None:
            require_prompt(session, order.name)
            raise Conflict(f"prompt {order.name} has no production version")
        if _repeated(order, production):
            return Labelled(
                order.name, PRODUCTION, production.version, order.from_version, repeated=True
            )
        why = f"rolled back: {order.reason}"
        stopped = stop_running(session, PROMPT_SPLIT + order.name, why, order.actor)
        version = production.previous
        if version is None and stopped is None:
            raise Conflict(
                f"prompt {order.name}: production is at its first version, {production.version}: "
                "there is nothing to go back to"
            )
        if version is not None:
            move = LabelMove(
                kind=ROLLBACK,
                name=order.name,
                version=version,
                actor=order.actor,
                reason=order.reason,
                evidence={"stopped_experiment": stopped} if stopped else None,
            )
            move_label(session, move)
    now_there = version or production.version
    return Labelled(order.name, PRODUCTION, now_there, production.version, stopped=stopped)


def _let_through(session: Session, row: PromptVersionRow, before: str | None) -> Verdict:
    """The verdict that lets a version become production. Raises Conflict where there is none."""
    running = running_experiment(session, PROMPT_SPLIT + row.name)
    if running is not None:
        raise Conflict(
            f"prompt {row.name}: experiment {running.experiment_id} is under way; wait for its "
            "end, or stop it"
        )
    where = f"prompt {row.name} version {row.version} does not become production"
    found = verdicts_on(session, subject_of(row.prompt))
    if not found:
        raise Conflict(
            f"{where}: no verdict on it; it has to be evaluated against production first"
        )
    verdict = found[-1]
    if verdict.decision is not Decision.PROMOTE:
        raise Conflict(f"{where}: the verdict on it is {verdict.decision}: {verdict.reasons[0]}")
    now_there = None if before is None else find_version(session, row.name, before)
    if now_there is not None and verdict.baseline != subject_of(now_there.prompt):
        raise Conflict(
            f"{where}: the verdict on it compares it with {verdict.baseline}, and production is "
            f"{subject_of(now_there.prompt)} (version {now_there.version}) now; evaluate it again"
        )
    back = last_rollback(session, row.name)
    if back is not None and verdict.created_at <= back.ts:
        raise Conflict(
            f"{where}: the verdict on it is older than the rollback of "
            f"{back.ts.isoformat(timespec='seconds')} ({back.reason}); evaluate it again"
        )
    return verdict


def _repeated(order: PromptRollback, production: Production) -> bool:
    """Whether it was done before. Raises Conflict if `production` is not what was seen."""
    if order.from_version is None or order.from_version == production.version:
        return False
    last = production.last
    if (
        last is not None
        and last.action == f"prompt.{ROLLBACK}"
        and (last.before or {}).get("version") == order.from_version
    ):
        return True
    raise Conflict(
        f"prompt {order.name}: production is version {production.version}, not "
        f"{order.from_version}; nothing was changed"
    )
