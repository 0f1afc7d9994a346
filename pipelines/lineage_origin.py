"""The lineage check from a model version back: MLflow, run, verdict, training, adapter, data."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.records import Decision
from evals.verdicts import VerdictRow
from pipelines.datasets import FileFacts, Manifest
from pipelines.lineage_examples import check_examples
from pipelines.lineage_findings import Findings, Sources, differences
from pipelines.lineage_mlflow import FINISHED, KnownVersion
from pipelines.tables import DatasetRow, ModelVersionRow, RunRow, TrainingRow

TRAIN_AGAIN = "train again: a candidate without it cannot be explained"


def check_version(
    sources: Sources, session: Session, findings: Findings, name: str, version: str
) -> None:
    """Everything that a registered version rests on."""
    of = f"model_version {name}/{version}"
    row = session.get(ModelVersionRow, (name, version))
    if row is None:
        said = "named by a promotion, an experiment, a run or MLflow, but not in the state database"
        findings.broken("registry", of, f"{said}; {TRAIN_AGAIN}")
        return
    findings.ok("registry", of)
    training = session.get(TrainingRow, row.training_id)
    with findings.asking_mlflow():
        known = sources.mlflow.versions(name).get(version)
        _check_registered(findings, of, row, training, known)
    _check_run(session, findings, of, row)
    _check_verdict(session, findings, of, row, training)
    to = f"training {row.training_id}"
    if training is None:
        findings.broken(of, to, f"not in the state database; {TRAIN_AGAIN}")
        return
    findings.ok(of, to)
    check_adapter(findings, of, row, training)
    _check_training(sources, findings, training)
    check_dataset(sources, session, findings, f"training {training.training_id}", training)


def _check_registered(
    findings: Findings,
    of: str,
    row: ModelVersionRow,
    training: TrainingRow | None,
    known: KnownVersion | None,
) -> None:
    to = f"MLflow version {row.version}"
    if known is None:
        findings.broken(of, to, "MLflow's registry has no such version; register it again")
        return
    expected: dict[str, str | None] = {
        "training_id": row.training_id,
        "verdict_id": row.verdict_id,
        "adapter": row.adapter,
    }
    found: dict[str, str | None] = {"run_id": known.training_id, **known.tags}
    if training is not None:
        expected["dataset_id"] = training.dataset_id
        expected["base_digest"] = training.base_digest
        if row.adapter == training.adapter:
            expected["adapter_digest"] = training.adapter_digest
    expected["run_id"] = row.training_id
    problems = differences(expected, found)
    if problems:
        problems.append("MLflow's tags and the state database disagree: find out who changed which")
    findings.judged(of, to, problems)


def _check_run(session: Session, findings: Findings, of: str, row: ModelVersionRow) -> None:
    if row.verdict_id is None:
        return  # registered by hand, unjudged: no pass of the pipeline made it
    query = select(RunRow).where(RunRow.name == row.name, RunRow.version == row.version)
    runs = list(session.scalars(query.order_by(RunRow.run_id)))
    if not runs:
        findings.broken(
            of, "run", f"no run of the pipeline is known to have made it; {TRAIN_AGAIN}"
        )
    for run in runs:
        expected: dict[str, str | None] = {
            "training_id": row.training_id,
            "verdict_id": row.verdict_id,
        }
        made: dict[str, str | None] = {
            "training_id": run.training_id,
            "verdict_id": run.verdict_id,
        }
        problems = differences(made, expected)
        findings.judged(of, f"run {run.run_id}", problems, run.state)


def _check_verdict(
    session: Session,
    findings: Findings,
    of: str,
    row: ModelVersionRow,
    training: TrainingRow | None,
) -> None:
    if row.verdict_id is None:
        findings.ok(of, "verdict", "registered unjudged")
        return
    to = f"verdict {row.verdict_id}"
    verdict = session.get(VerdictRow, row.verdict_id)
    if verdict is None:
        findings.broken(of, to, "not in the state database; evaluate the version again")
        return
    problems = differences({"subject": row.adapter}, {"subject": verdict.subject})
    if verdict.decision != Decision.PROMOTE:
        problems.append(f"it says {verdict.decision}: the version should not have been registered")
    expected: dict[str, str | None] = {"training_id": row.training_id}
    if training is not None:
        expected["dataset_id"] = training.dataset_id
    problems += differences(expected, verdict.evidence)
    findings.judged(of, to, problems, verdict.decision)


def check_adapter(findings: Findings, of: str, row: ModelVersionRow, training: TrainingRow) -> None:
    """The adapter's files against the digest that they were registered under."""
    to = f"adapter {row.adapter}"
    path = Path(row.adapter_path)
    digest = _digest(path)
    if digest is None:
        findings.broken(
            of, to, f"no whole adapter in {path}; fetch it from MLflow's run {row.training_id}"
        )
        return
    same = row.adapter == training.adapter
    named = row.adapter.rpartition("-")[2]
    matches = digest == training.adapter_digest if same else digest.startswith(named)
    wanted = training.adapter_digest if same else f"{named}…"
    findings.judged(
        of,
        to,
        []
        if matches
        else [f"{path} has the digest {digest}, not {wanted}; its files were changed"],
    )


def _digest(path: Path) -> str | None:
    from rlhf.adapter import inspect

    try:
        return inspect(path).digest
    except (OSError, ValueError, RuntimeError):
        return None


def _check_training(sources: Sources, findings: Findings, row: TrainingRow) -> None:
    of, to = f"training {row.training_id}", f"MLflow run {row.training_id}"
    with findings.asking_mlflow():
        run = sources.mlflow.run(row.training_id)
        if run is None or not run.active:
            what = "MLflow has no such run" if run is None else "the run was deleted in MLflow"
            findings.broken(of, to, f"{what}; restore it: mlflow runs restore --run-id")
            return
        problems = differences({"dataset_id": row.dataset_id}, dict(run.tags))
        if run.status != FINISHED:
            problems.append(f"it is {run.status} there, the training is finished")
        if not sources.mlflow.has_adapter(row.training_id):
            problems.append(
                "its artifact 'adapter' is gone; upload it again from the adapter's folder"
            )
        findings.judged(of, to, problems)


def check_dataset(
    sources: Sources, session: Session, findings: Findings, of: str, training: TrainingRow
) -> None:
    """A training's data set: row, manifest, files, and the origin of every example."""
    dataset_id = training.dataset_id
    row = session.get(DatasetRow, dataset_id)
    if row is None:
        findings.broken(of, f"dataset {dataset_id}", f"not in the state database; {TRAIN_AGAIN}")
        return
    findings.ok(of, f"dataset {dataset_id}")
    manifest = _check_manifest(findings, row)
    if manifest is not None:
        folder = _fetched(sources, findings, row)
        check_examples(sources, session, findings, manifest, folder)


def _check_manifest(findings: Findings, row: DatasetRow) -> Manifest | None:
    of = f"dataset {row.dataset_id}"
    fields = {name: value for name, value in row.manifest.items() if name != "dataset_id"}
    try:
        files = {name: FileFacts(**facts) for name, facts in fields.pop("files").items()}
        manifest = Manifest(files=files, **fields)
    except (KeyError, TypeError, AttributeError) as error:
        findings.broken(of, "manifest", f"not a data set's manifest ({error!r}); {TRAIN_AGAIN}")
        return None
    if manifest.dataset_id != row.dataset_id:
        said = f"its content is {manifest.dataset_id}: it was changed; {TRAIN_AGAIN}"
        findings.broken(of, "manifest", said)
        return None
    findings.ok(of, "manifest", f"{manifest.rows} examples")
    return manifest


def _fetched(sources: Sources, findings: Findings, row: DatasetRow) -> Path | None:
    if sources.fetch is None:
        return None
    of = f"dataset {row.dataset_id}"
    try:
        folder = sources.fetch(row.name, row.dataset_id)
    except (OSError, ValueError, RuntimeError) as error:
        findings.broken(of, "files", f"{error}; fetch them from a copy of LLMOPS_HOME/dvc")
        return None
    findings.ok(of, "files", str(folder))
    return folder
