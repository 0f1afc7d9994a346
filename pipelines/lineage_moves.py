"""The lineage check of what moved traffic: promotions, experiments, verdicts on them, the log.

Each promotion and experiment has its audit row and each such audit row its promotion or experiment,
so that neither can vanish alone. What the log says of adapters and experiments is what the state
database says.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.audit import AuditRow
from gateway.request_log import LogReader
from gateway.splits import find_split
from gateway.variants import PROMPT_SPLIT
from pipelines.approval import AUTOMATIC
from pipelines.champion import (
    BASE,
    CHALLENGER,
    CHAMPION,
    MOVING,
    RUNNING,
    champion_of,
    running_experiment,
    served_name_of,
)
from pipelines.experiment import PROMOTED, ROLLED_BACK, STOPPED, WON, title_of
from pipelines.lineage_approvals import check_asked, check_granted
from pipelines.lineage_findings import DISAGREE, RESTORE, Findings, Sources, differences
from pipelines.lineage_names import BEGUN, told
from pipelines.promotion import PREVIOUS, wanted_aliases
from pipelines.tables import ExperimentRow, ModelVersionRow, PromotionRow


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests of an alias in the log that had an adapter or took part in an experiment."""

    alias: str
    experiment: str | None
    variant: str | None
    adapter: str | None
    prompt_version: str | None
    requests: int


def answered(reader: LogReader, aliases: Collection[str] | None) -> list[Answered]:
    """What the log says of them, counted; None: of every alias."""
    found = reader.select(
        "SELECT model, experiment, variant, adapter, prompt_version, count(*) FROM requests"
        " WHERE (? OR list_has_any(?::VARCHAR[], [model, ? || prompt_name]))"
        " AND (experiment IS NOT NULL OR adapter IS NOT NULL) GROUP BY ALL ORDER BY ALL",
        [aliases is None, list(aliases or ()), PROMPT_SPLIT],
    )
    return [Answered(*row) for row in found.rows]


def check_audit(session: Session, findings: Findings, aliases: Collection[str] | None) -> None:
    """That what the audit trail tells of is there; None: of every alias."""
    for one in told(session):
        known = session.get(one.table, one.identifier) is not None
        if not known and (aliases is None or one.alias in aliases):
            gone = f"not in the state database, but audit row {one.audit_id} tells of it; {RESTORE}"
            what = f"{one.table.__tablename__} {one.identifier}"
            findings.broken(title_of(one.alias).place, what, gone)


def check_promotion(session: Session, findings: Findings, row: PromotionRow) -> None:
    """A move of an alias: its audit row, version, experiment and verdict."""
    of = f"promotion {row.promotion_id}"
    trail = select(AuditRow).where(
        AuditRow.action == f"champion.{row.kind}", AuditRow.subject == f"alias:{row.alias}"
    )
    entries = [
        entry
        for entry in session.scalars(trail)
        if (entry.evidence or {}).get("promotion_id") == row.promotion_id
    ]
    if entries:
        to = f"audit row {entries[0].id}"
        findings.judged(of, to, _differences(row, entries[0]), f"by {row.actor}", DISAGREE)
        check_granted(session, findings, row, entries[0])
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
    of, title = f"experiment {row.experiment_id}", title_of(row.alias)
    _check_trail(session, findings, row)
    if row.version is not None:
        gone = [] if title.served(session, row.name, row.version) else ["not in the state database"]
        findings.judged(of, title.called(row.name, row.version), gone)
    _check_arms(session, findings, row, log)
    _check_verdict(session, findings, row)
    check_asked(session, findings, row)
    watches = row.plan.get("watches") is not None
    if row.state == PROMOTED or (watches and row.state == ROLLED_BACK):
        moves = title.moves_of(session, row.experiment_id)
        missing = [f"it ended as {row.state}, and no promotion or rollback names it"]
        findings.judged(of, "promotion", [] if moves else missing, ", ".join(moves))


def check_split(session: Session, findings: Findings, alias: str) -> None:
    """That the traffic goes where the promotions and the experiment under way say."""
    champion, running = champion_of(session, alias), running_experiment(session, alias)
    adapter = served_name_of(session, champion.name_or(alias), champion.version)
    if running is None:
        wanted = _traffic({CHAMPION: adapter})
    else:
        wanted = _traffic(_arms(running.arms, "adapter"), running.experiment_id)
    split = find_split(session, alias)
    if split is None:
        found = _traffic({CHAMPION: None})
    else:
        found = _traffic(_arms(split.as_dict()["arms"], "adapter"), split.experiment_id)
    wrong = [f"its traffic goes to {found}, it should go to {wanted}"] if found != wanted else []
    cure = "roll back, then promote again" if running is None else "stop the experiment"
    findings.judged(f"model {alias}", "split", wrong, found, cure)


def check_aliases(sources: Sources, session: Session, findings: Findings, name: str) -> None:
    """That MLflow's aliases of a registered model are where the promotions say."""
    wanted = wanted_aliases(session).get(name)
    if wanted is None:
        return
    expected = {alias: wanted[alias] for alias in (CHAMPION, PREVIOUS)}
    with findings.asking_mlflow():
        problems = differences(expected, dict(sources.mlflow.aliases(name)))
        moving = select(PromotionRow.promotion_id).where(
            PromotionRow.name == name, PromotionRow.state == MOVING
        )
        if session.scalars(moving).first() is not None:
            cure = "the controller is still to tell MLflow: see that it runs, and wait"
        else:
            cure = "somebody moved them; the controller puts them right when it is started again"
        said = ", ".join(f"{alias} {version or '-'}" for alias, version in expected.items())
        findings.judged("registry", f"MLflow aliases of {name}", problems, said, cure)


def check_log(session: Session, findings: Findings, log: Sequence[Answered]) -> None:
    """That every adapter and experiment in the log is known."""
    for one in log:
        of = f"requests on {one.alias}"
        if one.experiment is not None:
            there = session.get(ExperimentRow, one.experiment) is not None
            gone = f"{one.requests} requests took part in it, the database has none"
            findings.judged(of, f"experiment {one.experiment}", [] if there else [gone])
        if one.adapter is not None:
            query = select(ModelVersionRow).where(ModelVersionRow.served_name == one.adapter)
            known = session.scalars(query.limit(1)).first()
            gone = f"{one.requests} requests were answered with it, no version has it"
            found = "" if known is None else f"{known.name}/{known.version}"
            findings.judged(of, f"adapter {one.adapter}", [] if known else [gone], found)


def _check_there(
    session: Session, findings: Findings, of: str, wanted: tuple[type[Any], Any]
) -> None:
    table, key = wanted
    identifier = "/".join(key) if isinstance(key, tuple) else key
    there = session.get(table, key) is not None
    gone = ["not in the state database"]
    findings.judged(of, f"{table.__tablename__} {identifier}", [] if there else gone)


def _differences(row: PromotionRow, entry: AuditRow) -> list[str]:
    """Between a promotion and what the audit trail says of it."""
    expected = {
        "actor": row.actor,
        "reason": row.reason,
        "from_version": row.from_version,
        "to_version": row.to_version,
        "name": row.name,
        "experiment_id": row.experiment_id,
        "verdict_id": row.verdict_id,
    }
    said = {
        "actor": entry.actor,
        "reason": entry.reason,
        "from_version": (entry.before or {}).get("version"),
        "to_version": (entry.after or {}).get("version"),
    }
    return differences(expected, {**(entry.evidence or {}), **said})


def _check_trail(session: Session, findings: Findings, row: ExperimentRow) -> None:
    """That the audit trail says how it began and how it ended."""
    of = f"experiment {row.experiment_id}"
    trail = select(AuditRow).where(AuditRow.subject == f"experiment:{row.experiment_id}")
    entries = {entry.action: entry for entry in session.scalars(trail.order_by(AuditRow.id))}
    expected: dict[str, dict[str, Any]] = {
        BEGUN: {
            "alias": row.alias,
            "arms": row.arms,
            "plan": row.plan,
            "approval": row.approval,
        }
    }
    if row.state != RUNNING:
        ended = {"state": row.state, "alias": row.alias, "version": row.version}
        expected[f"experiment.{row.state}"] = ended
    for action, values in expected.items():
        entry = entries.get(action)
        if entry is None:
            problems = ["the audit trail says nothing of it"]
        else:
            after = {"approval": AUTOMATIC, **(entry.after or {})}  # older ones do not say it
            problems = [
                f"its {name} in the audit trail is another"
                for name, value in values.items()
                if after.get(name) != value
            ]
        findings.judged(of, f"audit row {action}", problems, "" if entry is None else entry.id)


def _arms(arms: Sequence[Mapping[str, Any]], column: str) -> dict[str, str | None]:
    return {arm["variant"]["name"]: arm["variant"][column] for arm in arms}


def _traffic(adapters: Mapping[str, str | None], experiment_id: str | None = None) -> str:
    """Who answers whom, in words."""
    arms = ", ".join(f"{arm} {adapter or BASE}" for arm, adapter in sorted(adapters.items()))
    return f"{arms} (experiment {experiment_id})" if experiment_id else arms


def _check_arms(
    session: Session, findings: Findings, row: ExperimentRow, log: Sequence[Answered]
) -> None:
    """That the log's requests of it carry its arms, and each what its arm stands for."""
    of, title = f"experiment {row.experiment_id}", title_of(row.alias)
    arms, problems = _arms(row.arms, title.column), []
    if row.version is not None:
        wanted = title.served(session, row.name, row.version)
        problems += [] if wanted is None else differences({CHALLENGER: wanted}, arms)
    seen: dict[str, int] = dict.fromkeys(arms, 0)
    for one in log:
        if one.experiment != row.experiment_id:
            continue
        got = getattr(one, title.column)
        if one.variant is None or got != arms.get(one.variant, "no such arm"):
            problems.append(
                f"{one.requests} requests in the log are arm {one.variant} with {title.column} "
                f"{got or 'none'}, which it does not have"
            )
        else:
            seen[one.variant] += one.requests
    said = ", ".join(f"{count} {arm}" for arm, count in seen.items())
    findings.judged(of, "arms", problems, said, DISAGREE)


def _check_verdict(session: Session, findings: Findings, row: ExperimentRow) -> None:
    of = f"experiment {row.experiment_id}"
    if row.verdict_id is None:
        decided = row.state not in (RUNNING, STOPPED)
        gone = [f"it ended as {row.state} without a verdict"]
        findings.judged(of, "verdict", gone if decided else [], row.state)
        return
    verdict = session.get(VerdictRow, row.verdict_id)
    to = f"verdict {row.verdict_id}"
    if verdict is None:
        findings.broken(of, to, f"not in the state database; {RESTORE}")
        return
    told: Mapping[str, Any] = verdict.evidence
    subjects = title_of(row.alias).subjects(session, row)
    expected = {
        "experiment_id": row.experiment_id,
        "version": row.version,
        "subject": subjects[CHALLENGER],
        "baseline": subjects[CHAMPION],
    }
    measured = {"subject": verdict.subject, "baseline": verdict.baseline}
    problems = differences(expected, {**told, **measured})
    if (verdict.decision == "promote") != (row.state in (PROMOTED, WON)):
        problems.append(f"it says {verdict.decision}, the experiment ended as {row.state}")
    findings.judged(of, to, problems, verdict.decision, DISAGREE)
