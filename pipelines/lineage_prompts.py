"""The lineage check of a prompt: its versions, the moves of `production`, its split, MLflow."""

from sqlalchemy.orm import Session

from evals.verdicts import VerdictRow
from gateway.audit import AuditRow
from gateway.prompt_versions import (
    PRODUCTION,
    PromptVersionRow,
    find_version,
    labels_of,
    versions_of,
)
from gateway.splits import find_split
from gateway.variants import PROMPT_SPLIT
from pipelines.champion import running_experiment
from pipelines.lineage_findings import DISAGREE, RESTORE, Findings, Sources, differences
from pipelines.prompt_labels import EXPERIMENT, VERDICT, moves_of
from pipelines.prompt_registry import registered_name
from pipelines.tables import ExperimentRow

EVIDENCE = {EXPERIMENT: ExperimentRow, VERDICT: VerdictRow}


def check_prompt(
    sources: Sources, session: Session, findings: Findings, alias: str
) -> list[tuple[str, str]]:
    """Check the prompt behind `prompt:NAME`; its versions, each with that name."""
    name = alias.removeprefix(PROMPT_SPLIT)
    of, labels, rows = f"prompt {name}", labels_of(session, name), versions_of(session, name)
    moves = moves_of(session, name)
    last = str((moves[-1].after or {}).get("version")) if moves else None
    problems = differences({PRODUCTION: last}, labels)
    findings.judged(of, PRODUCTION, problems, f"version {last or '-'}", DISAGREE)
    _check_split(session, findings, alias)
    with findings.asking_mlflow():
        known = sources.mlflow.aliases(registered_name(name))
        cure = "the controller is to put them right within a minute: see that it runs, and wait"
        said = ", ".join(f"{label} {version}" for label, version in labels.items())
        to = f"MLflow aliases of {registered_name(name)}"
        findings.judged("registry", to, differences(labels, known), said, cure)
    for move in reversed(moves):
        _check_move(session, findings, name, move)
    for row in rows:
        _check_version(findings, row)
    return [(alias, row.version) for row in rows]


def _check_split(session: Session, findings: Findings, alias: str) -> None:
    """That production's users are shared as the experiment under way says, or not at all."""
    running, split = running_experiment(session, alias), find_split(session, alias)
    wanted = None if running is None else (running.experiment_id, running.arms)
    found = None if split is None else (split.experiment_id, list(split.as_dict()["arms"]))
    problems = [] if wanted == found else ["it is not that of the experiment under way"]
    said = "none" if running is None else f"experiment {running.experiment_id}"
    of = f"prompt {alias.removeprefix(PROMPT_SPLIT)}"
    findings.judged(
        of, "split", problems, said, "stop the experiment, or start another and stop it"
    )


def _check_move(session: Session, findings: Findings, name: str, move: AuditRow) -> None:
    """A move of `production`: the version as it was then, and what decided it."""
    of, evidence = f"audit row {move.id}", move.evidence or {}
    version = str((move.after or {}).get("version"))
    row = find_version(session, name, version)
    to = f"prompt {name}@{version}"
    if row is None:
        findings.broken(of, to, f"not in the state database; {RESTORE}")
    else:
        expected = {"content_hash": evidence.get("content_hash")}
        problems = differences(expected, {"content_hash": row.content_hash})
        findings.judged(of, to, problems, f"{move.action} by {move.actor}", DISAGREE)
    for field, table in EVIDENCE.items():
        identifier = evidence.get(field)
        if identifier is not None:
            gone = [] if session.get(table, identifier) else ["not in the state database"]
            findings.judged(of, f"{table.__tablename__} {identifier}", gone)


def _check_version(findings: Findings, row: PromptVersionRow) -> None:
    """That its content is the one that its hash stands for."""
    of = f"prompt {row.name}@{row.version}"
    with findings.reading(of):
        problems = differences({"hash": row.content_hash}, {"hash": row.prompt.content_hash})
        findings.judged(of, "content", problems, row.content_hash[:12])
