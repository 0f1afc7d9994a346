"""The lineage check from a model version back: MLflow, run, verdict, training, adapter, data."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from evals.records import Decision
from evals.verdicts import VerdictRow
from pipelines.datasets import PARTS
from pipelines.lifecycle import KINDS
from pipelines.lineage_examples import check_examples
from pipelines.lineage_findings import DISAGREE, RESTORE, Findings, Origins, Sources, differences
from pipelines.lineage_mlflow import FINISHED, KnownVersion, MLflowFacts
from pipelines.manifest import DatasetChanged, Manifest, verify
from pipelines.registry import ARTIFACT
from pipelines.tables import DatasetRow, ModelVersionRow, RunRow, TrainingRow
from pipelines.workspace import WorkspaceBusy

RESTORE_OR_TRAIN = f"{RESTORE}, or train again: a version without it cannot be explained"


def check_version(origins: Origins, name: str, version: str) -> None:
    """Everything that a registered version rests on."""
    session, findings = origins.session, origins.findings
    of = f"model_version {name}/{version}"
    row = session.get(ModelVersionRow, (name, version))
    if row is None:
        said = "named by a promotion, an experiment, a run or MLflow, but not in the state database"
        findings.broken("registry", of, f"{said}; {RESTORE_OR_TRAIN}")
        return
    findings.ok("registry", of)
    training = session.get(TrainingRow, row.training_id)
    with findings.asking_mlflow():
        known = origins.sources.mlflow.versions(name).get(version)
        _check_registered(findings, of, row, training, known)
    _check_run(session, findings, of, row, training)
    _check_verdict(session, findings, of, row, training)
    to = f"training {row.training_id}"
    if training is None:
        findings.broken(of, to, f"not in the state database; {RESTORE_OR_TRAIN}")
        return
    expected = {"name": row.name}
    if row.verdict_id is not None:
        expected["served_name"] = (
            row.served_name
        )  # a drill's is made from the training's, and unjudged
    found = {"name": training.name, "served_name": training.served_name}
    findings.judged(of, to, differences(expected, found), "", DISAGREE)
    _check_model(findings, of, row, training)
    _check_training(origins.sources.mlflow, findings, training)
    _check_dataset(origins, training)


def _check_registered(
    findings: Findings,
    of: str,
    row: ModelVersionRow,
    training: TrainingRow | None,
    known: KnownVersion | None,
) -> None:
    to = f"MLflow version {row.version}"
    if known is None:
        findings.broken(
            of,
            to,
            "MLflow's registry has no such version; restore MLflow from a copy, or train again",
        )
        return
    expected = {
        "run_id": row.training_id,
        "training_id": row.training_id,
        "verdict_id": row.verdict_id,
        "served_name": row.served_name,
    }
    found = {**known.tags, "run_id": known.training_id}
    if training is not None:
        expected |= {"dataset_id": training.dataset_id, "base_digest": training.base_digest}
        expected["kind"] = training.kind
        expected["digest"] = training.digest
        if row.served_name != training.served_name:
            digest, named = known.tags.get("digest", ""), _named(row)
            expected["digest"] = digest if digest.startswith(named) else f"{named}…"
    findings.judged(of, to, differences(expected, found), "", DISAGREE)


def _check_run(
    session: Session,
    findings: Findings,
    of: str,
    row: ModelVersionRow,
    training: TrainingRow | None,
) -> None:
    """That a run made it with its verdict; later ones may have found it again and judged anew."""
    if row.verdict_id is None:
        return  # registered by hand, unjudged: no pass of the pipeline made it
    query = select(RunRow).where(RunRow.name == row.name, RunRow.version == row.version)
    runs = list(session.scalars(query.order_by(RunRow.run_id)))
    if not any(run.verdict_id == row.verdict_id for run in runs):
        gone = f"no run of the pipeline is known to have made it; {RESTORE_OR_TRAIN}"
        findings.broken(of, "run", gone)
    expected = {"training_id": row.training_id}
    if training is not None:
        expected["dataset_id"] = training.dataset_id
    for run in runs:
        found = {"training_id": run.training_id, "dataset_id": run.dataset_id}
        problems = differences(expected, found)
        verdict = session.get(VerdictRow, run.verdict_id) if run.verdict_id else None
        if verdict is None or verdict.subject != row.served_name:
            problems.append(f"it names no verdict on {row.served_name} that is known")
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
        findings.broken(of, to, f"not in the state database; {RESTORE_OR_TRAIN}")
        return
    problems = differences({"subject": row.served_name}, {"subject": verdict.subject})
    if verdict.decision != Decision.PROMOTE:
        problems.append(f"it says {verdict.decision}: the version should not have been registered")
    expected: dict[str, str | None] = {"training_id": row.training_id}
    if training is not None:
        expected["dataset_id"] = training.dataset_id
    problems += differences(expected, verdict.evidence)
    findings.judged(of, to, problems, verdict.decision, DISAGREE)


def _check_model(findings: Findings, of: str, row: ModelVersionRow, training: TrainingRow) -> None:
    """The model's files against the digest that they were registered under."""
    to, path = f"adapter {row.served_name}", Path(row.path)
    cure = "restore its folder from a copy"
    wanted = _named(row)
    if row.served_name == training.served_name:
        wanted = training.digest
        cure = f"fetch it again: mlflow artifacts download --run-id {row.training_id} -a {ARTIFACT}"
    digest = _digest(training.kind, path)
    if digest is None:
        findings.broken(of, to, f"no whole model in {path}; {cure}")
        return
    changed = f"{path} has the digest {digest}, not {wanted}: its files were changed"
    same = bool(wanted) and digest.startswith(wanted)
    findings.judged(of, to, [] if same else [changed], "", cure)


def _named(row: ModelVersionRow) -> str:
    """The digest's first digits, which it is named for."""
    return row.served_name.rpartition("-")[2]


def _digest(kind: str, path: Path) -> str | None:
    try:
        return KINDS[kind].digest(path)
    except (KeyError, OSError, ValueError, RuntimeError):
        return None


def _check_training(mlflow: MLflowFacts, findings: Findings, row: TrainingRow) -> None:
    of, to = f"training {row.training_id}", f"MLflow run {row.training_id}"
    with findings.asking_mlflow():
        run = mlflow.run(row.training_id)
        if run is None or not run.active:
            gone = "MLflow has no such run; restore MLflow from a copy"
            if run is not None:
                restore = f"mlflow runs restore --run-id {row.training_id}"
                gone = f"the run was deleted in MLflow; restore it: {restore}"
            findings.broken(of, to, gone)
            return
        problems = differences({"dataset_id": row.dataset_id}, run.tags)
        if run.status != FINISHED:
            problems.append(f"it is {run.status} there, the training is finished")
        there = mlflow.model_files(row.training_id)
        lost = [name for name in _files_in(Path(row.path)) if name not in there]
        cure = DISAGREE
        if lost:
            problems.append(f"its artifact {ARTIFACT!r} has no {', '.join(lost)}")
            cure = (
                f"upload it again: mlflow artifacts log-artifacts --run-id {row.training_id} "
                f"-a {ARTIFACT} -l {row.path}"
            )
        findings.judged(of, to, problems, "", cure)


def _files_in(folder: Path) -> list[str]:
    """Names of the files of a model, as far as they lie in the top of its folder."""
    return sorted(path.name for path in folder.glob("*") if path.is_file())


def _check_dataset(origins: Origins, training: TrainingRow) -> None:
    """A training's data set: row, manifest, files, and the origin of every example."""
    findings, dataset_id = origins.findings, training.dataset_id
    of = f"dataset {dataset_id}"
    row = origins.session.get(DatasetRow, dataset_id)
    if row is None:
        gone = f"not in the state database; {RESTORE_OR_TRAIN}"
        findings.broken(f"training {training.training_id}", of, gone)
        return
    findings.ok(f"training {training.training_id}", of)
    if findings.seen(of, "manifest"):
        return  # of another training
    manifest = _check_manifest(findings, row)
    if manifest is None:
        return
    folder, trouble = _fetched(origins.sources, row, manifest)
    if not PARTS.keys().isdisjoint(manifest.files):  # else it was made from a source's snapshot
        check_examples(origins, manifest, folder)
    if isinstance(trouble, WorkspaceBusy):
        findings.broken(of, "files", f"cannot be checked: {trouble}")
    elif trouble is not None and findings.has_erased(of) and not _changed(trouble):
        findings.erased(of, "files", f"gone, as some of its examples are: {trouble}")
    elif trouble is not None:
        findings.broken(of, "files", f"{trouble}; fetch them from a copy of LLMOPS_HOME/dvc")
    elif folder is not None:
        findings.ok(of, "files", str(folder))


def _check_manifest(findings: Findings, row: DatasetRow) -> Manifest | None:
    of = f"dataset {row.dataset_id}"
    try:
        manifest = Manifest.parse(row.manifest)
    except DatasetChanged as error:
        findings.broken(of, "manifest", f"{error}; {RESTORE_OR_TRAIN}")
        return None
    if manifest.dataset_id != row.dataset_id:
        said = f"its content is {manifest.dataset_id}: it was changed; {RESTORE_OR_TRAIN}"
        findings.broken(of, "manifest", said)
        return None
    if manifest.name != row.name:
        other = f"it is one of {manifest.name}, not of {row.name}; {DISAGREE}"
        findings.broken(of, "manifest", other)
        return None
    findings.ok(of, "manifest", f"{manifest.rows} examples")
    return manifest


def _fetched(
    sources: Sources, row: DatasetRow, manifest: Manifest
) -> tuple[Path | None, Exception | None]:
    """The folder with the files, or why there is none; neither if files are not looked at."""
    if sources.fetch is None:
        return None, None
    try:
        folder = sources.fetch(row.name, row.dataset_id)
        verify(folder, manifest)
    except (OSError, ValueError, RuntimeError) as error:
        return None, error
    return folder, None


def _changed(trouble: Exception) -> bool:
    """Whether files are there that are others than they were: an erasure leaves none."""
    return isinstance(trouble, DatasetChanged) or isinstance(trouble.__cause__, DatasetChanged)
