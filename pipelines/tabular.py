"""Tabular models in the lifecycle: data sets from snapshots and feature definitions, classifiers of
scikit-learn and XGBoost, KServe's model server."""

import asyncio
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import uuid_utils
from sqlalchemy import select

from evals.prediction_reference import Evaluated, keep_predictions
from evals.records import Decision, Verdict
from evals.verdicts import add_verdict
from gateway.configuration import ConfigurationError
from gateway.database import now
from gateway.feature_schema import FeatureSchema, feature_schema, schema_from_dict
from gateway.feature_store import REPOSITORY, FeatureStoreError
from gateway.tabular_model import ModelUnusable, load_model
from pipelines import snapshots
from pipelines.champion import champion_name
from pipelines.data_store import store_of
from pipelines.engines import engine_of
from pipelines.features import FeaturesMissing
from pipelines.installation import Installation
from pipelines.kinds import (
    Contest,
    EvaluationFailed,
    Facts,
    Fitted,
    LogMetrics,
    Measurements,
    ModelKind,
    Say,
)
from pipelines.manifest import Manifest, read_manifest
from pipelines.schema import SchemaChanged
from pipelines.spec import Spec
from pipelines.step_runs import PASS
from pipelines.tables import DatasetRow, TrainingRow
from pipelines.tabular_comparison import Subject, compare_models
from pipelines.tabular_features import COLUMNS, build, period
from pipelines.tabular_package import model_digest, served_name
from pipelines.tabular_rows import TEST, TRAIN, BadData, TabularRows, read_rows
from pipelines.tabular_spec import LEAK, sections
from pipelines.tabular_training import train

ROLLOUT_SECONDS = 30.0
EXAMPLE_ROWS = 5
SNAPSHOT = "snapshot"
LEARNERS = ("scikit-learn", "xgboost-cpu")
CODE = ("boosting.py", "tabular_candidates.py", "tabular_rows.py", "tabular_training.py")
CODE_CHARACTERS = 16


def check(installation: Installation, spec: Spec) -> None:
    """Whether a model server answers the alias and the spec names what there is.

    Raises: ConfigurationError.
    """
    given = sections(spec)
    snapshots.source_of(given.dataset.source)
    try:
        schema = feature_schema(given.dataset.service)
    except FeatureStoreError as error:
        raise ConfigurationError(f"dataset.service: {error}") from error
    for name in given.evaluation.slices:
        if schema.column(name) is None:
            known = ", ".join(column.name for column in schema.columns)
            raise ConfigurationError(f"evaluation.slices: no column {name!r} (there are: {known})")
    measured = given.evaluation.metrics
    for condition in spec.gate:
        if condition.metric not in measured:
            known = ", ".join(measured)
            raise ConfigurationError(f"gate: no metric {condition.metric!r} (there are: {known})")
    if LEAK not in {condition.metric for condition in spec.gate}:
        raise ConfigurationError(
            f"gate: a condition on {LEAK} is wanted: how much a single feature may know before it "
            "is taken for a leak"
        )
    if engine_of(installation, spec.alias).kind != "kserve":
        raise ConfigurationError(
            f"alias: {spec.alias} is not answered by an upstream of kind kserve"
        )


def facts(_installation: Installation, spec: Spec) -> Facts:
    """Digest of the feature definitions; versions of what learns, and digest of how it is used."""
    digest = hashlib.sha256()
    for file in sorted(REPOSITORY.glob("*.py")):
        digest.update(file.read_bytes())
    learners = ", ".join(f"{name} {version(name)}" for name in LEARNERS)
    code = hashlib.sha256()
    for name in CODE:
        code.update((Path(__file__).parent / name).read_bytes())
    return {
        "features": {"definitions": digest.hexdigest()},
        "train": {"learners": learners, "code": code.hexdigest()[:CODE_CHARACTERS]},
    }


def preprocess(installation: Installation, spec: Spec, out: Path, say: Say) -> None:
    """A snapshot of the source's period; `out` has its files and its id."""
    given = sections(spec).dataset
    say(0, f"reading {given.source}")
    run = installation.settings.secret_value(PASS)
    with _told(installation, spec):
        asked = period(given, now().date())
    found = snapshots.freeze(installation, given.source, asked.since, asked.until, run)
    shutil.copytree(found.folder, out, dirs_exist_ok=True)
    asked.write(out)
    (out / SNAPSHOT).write_text(f"{found.id}\n")
    say(100, f"snapshot {found.id}")


def features(
    installation: Installation, spec: Spec, preprocessed: Path, out: Path, say: Say
) -> Manifest:
    """Rows with their features as they were known, training and test apart."""
    given = sections(spec).dataset
    say(0, f"features of {given.service}")
    with _told(installation, spec):
        snapshot_id = (preprocessed / SNAPSHOT).read_text().strip()
        before = _champions_columns(installation, spec)
        return build(spec.name, given, preprocessed, snapshot_id, out, before)


def fit(
    installation: Installation, spec: Spec, dataset: Path, out: Path, log: LogMetrics
) -> Fitted:
    """The best of a small search, calibrated, as an MLflow model folder."""
    given, begun = sections(spec), monotonic()
    shutil.rmtree(out, ignore_errors=True)
    with _told(installation, spec):
        rows = _rows(spec, dataset, TRAIN)
        trained = train(rows, given.training, log)
    schema = _schema(dataset)
    metadata = {
        "feature_service": given.dataset.service,
        "entities": list(schema.entities),
        "request_columns": list(schema.request_columns),
        "dataset_id": read_manifest(dataset).dataset_id,
        "algorithm": trained.best.algorithm,
        "parameters": dict(trained.best.parameters),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    trained.candidate.save(trained.model, out, rows.features.head(EXAMPLE_ROWS), metadata)
    found = digest(out)
    return Fitted(
        served_name=served_name(spec.name, found),
        digest=found,
        path=out,
        base_model="",
        base_digest="",
        metrics={
            "validation_log_loss": trained.best.log_loss,
            "validation_auc": trained.best.auc,
            "trials": float(len(trained.trials)),
            "train_rows": float(len(rows)),
            "train_seconds": monotonic() - begun,
        },
    )


def folder(installation: Installation) -> Path:
    """Where the model server loads models from."""
    return installation.settings.tabular_dir


def digest(path: Path) -> str:
    """Of what the model at `path` has learnt. Raises ModelUnusable."""
    return model_digest(path, load_model(path).columns)


def serve(installation: Installation, spec: Spec, name: str, path: Path) -> None:
    """Load the model on every replica of the model server.

    Raises:
        ModelUnusable: it cannot be loaded, here either.
        RolloutFailed: a replica does not serve it.
    """
    load_model(path)
    replicas = engine_of(installation, spec.alias).replicas()
    asyncio.run(replicas.load(name, path, within=ROLLOUT_SECONDS))


def compare(
    installation: Installation, spec: Spec, dataset: Path, contest: Contest, out: Path, say: Say
) -> Measurements:
    """Both on the rows of the last days; predictions and slices stay in `out`.

    Raises: EvaluationFailed: the champion cannot be loaded, or does not take these rows.
    """
    from threadpoolctl import threadpool_limits

    given = sections(spec)
    try:
        with _told(installation, spec), threadpool_limits(limits=1):  # as the server asks a model
            learnt, later = _rows(spec, dataset, TRAIN), _rows(spec, dataset, TEST)
            champion = _subject(installation, contest.champion, float(learnt.labels.mean()))
            candidate = _subject(installation, contest.candidate)
            say(10, f"{len(later)} rows of {given.dataset.test_days} days")
            compared = compare_models(champion, candidate, learnt, later, given.evaluation)
    except (BadData, ModelUnusable) as error:
        raise EvaluationFailed(f"nothing was judged: {error}") from error
    compared.write(out, later)
    moment = snapshots.source_of(given.dataset.source).moment
    evaluated = Evaluated(
        features=later.features,
        probability=compared.predictions["candidate"],
        outcome=later.labels,
        moment=later.table[moment],
        about={
            "label": given.dataset.label,
            "time": moment,
            "dataset_id": read_manifest(dataset).dataset_id,
        },
    )
    keep_predictions(installation.settings.home, contest.candidate, evaluated)
    return compared.metrics


def accept(installation: Installation, manifest: Manifest) -> None:
    """Tell the store of snapshots; a snapshot that runs share is accepted with the first."""
    run = installation.settings.secret_value(PASS) or manifest.dataset_id
    store_of(installation).accept(manifest.about["snapshot_id"], run)


def _subject(installation: Installation, name: str | None, base_rate: float = 0.0) -> Subject:
    if name is None:
        return Subject(None, None, base_rate)
    path = folder(installation) / name
    return Subject(load_model(path), path)


def _rows(spec: Spec, dataset: Path, file: str) -> TabularRows:
    given = sections(spec).dataset
    moment = snapshots.source_of(given.source).moment
    return read_rows(dataset / file, _schema(dataset).features, given.label, moment)


def _schema(dataset: Path) -> FeatureSchema:
    """The columns of a data set as they were defined when it was made."""
    return schema_from_dict(read_manifest(dataset).about[COLUMNS])


def _champions_columns(installation: Installation, spec: Spec) -> Mapping[str, Any] | None:
    """Facts of the columns that the champion learnt from, if it is one of the same service."""
    served_name = champion_name(installation.database, spec.alias)
    query = (
        select(DatasetRow.manifest)
        .join(TrainingRow, TrainingRow.dataset_id == DatasetRow.dataset_id)
        .where(TrainingRow.served_name == served_name, TrainingRow.kind == spec.kind)
    )
    with installation.database.session() as session:
        found = session.scalars(query.limit(1)).first()
    columns: Mapping[str, Any] = (found or {}).get(COLUMNS, {})
    return columns if columns.get("service") == sections(spec).dataset.service else None


@contextmanager
def _told(installation: Installation, spec: Spec) -> Iterator[None]:
    """Data that cannot be used is a verdict that somebody should look; the champion stays."""
    try:
        yield
    except (BadData, SchemaChanged, FeaturesMissing) as error:
        verdict = Verdict(
            verdict_id=str(uuid_utils.uuid7()),
            subject=f"data:{spec.name}",
            baseline="",
            decision=Decision.ALERT,
            metrics=(),
            reasons=(str(error),),
            evidence={"dataset": spec.dataset},
            created_at=now(),
        )
        with installation.database.transaction() as session:
            add_verdict(session, verdict)
        raise


TABULAR = ModelKind(
    check=check,
    facts=facts,
    preprocess=preprocess,
    features=features,
    fit=fit,
    folder=folder,
    digest=digest,
    serve=serve,
    compare=compare,
    accept=accept,
    plain=False,
)
