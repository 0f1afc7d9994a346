"""A model that somebody else's script has trained: into the registry, and before the gate.

    from pipelines.adopt import adopt

    print(adopt(model, "flight-delay", rows, labels, days))

The script keeps its training; what is needed are rows that the model has not seen, later than those
it was trained on. They are frozen as the data set that it is judged on. What it was trained on is
not known, and its record says so (`origin: foreign`): leaks cannot be looked for, and nothing of it
can be reproduced. It is compared with the champion on the same rows, or with those rows' own base
rate where there is none. The version is made whatever the gate says, and gets traffic only if that
says yes.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.classification import Rows, Statistic, auc, brier, calibration_error, log_loss
from evals.cluster_bootstrap import Resamples
from evals.gate import Condition, judge
from evals.records import Verdict
from evals.verdicts import add_verdict, find_verdict
from gateway.database import now
from gateway.settings import load_settings
from gateway.tabular_model import ModelUnusable, TabularModel, load_model
from pipelines import datasets
from pipelines.champion import BASE, champion_of, find_version
from pipelines.code_version import git_sha
from pipelines.installation import Installation, open_installation
from pipelines.lifecycle import make_version
from pipelines.manifest import Manifest, is_whole, seal
from pipelines.registry import ARTIFACT
from pipelines.tables import ModelVersionRow, TrainingRow
from pipelines.tabular_package import (
    EXAMPLE_ROWS,
    model_digest,
    save_booster,
    save_estimator,
    served_name,
)
from pipelines.tabular_rows import BadData
from pipelines.tracking import Tracking

if TYPE_CHECKING:
    import pandas as pd

FOREIGN = {"origin": "foreign", "trained_on": "not known", "how": "not known"}
TEST, LABEL, DAY = "test.parquet", "label", "day"
SEED = 0
GATE = (Condition(metric="brier", direction="decrease", minimum_n=200),)
METRICS: Mapping[str, Callable[[Rows, Any], Statistic]] = {
    "auc": auc,
    "brier": brier,
    "calibration_error": calibration_error,
    "log_loss": log_loss,
}


@dataclass(frozen=True, slots=True)
class Adopted:
    """A foreign model in the registry, and what the gate says of it."""

    name: str
    version: str
    served_name: str
    verdict: Verdict

    def __str__(self) -> str:
        said = f"{self.verdict.decision}: {self.verdict.reasons[0]}"
        return f"{self.name} version {self.version} ({self.served_name}): {said}"


@dataclass(frozen=True, slots=True)
class Later:
    """Rows that the model has not seen, with the label and the day of each."""

    table: "pd.DataFrame"
    labels: Any
    days: Any

    @classmethod
    def of(cls, rows: "pd.DataFrame", labels: Sequence[Any], days: Sequence[Any]) -> "Later":
        """Raises BadData: lengths differ, labels or days are something else, there is nothing to
        tell apart, or a feature has a name that the data set needs itself."""
        try:
            found = np.asarray(labels).astype(float)
            on = np.asarray(days, dtype="datetime64[D]")
        except (TypeError, ValueError) as error:
            raise BadData(f"labels are 0 or 1, days are dates: {error}") from error
        if not len(rows) == len(found) == len(days):
            raise BadData(f"{len(rows)} rows, {len(found)} labels, {len(days)} days: one of each")
        if set(np.unique(found)) != {0.0, 1.0}:
            raise BadData("labels: 0 and 1 are wanted, and both of them")
        taken = [name for name in (LABEL, DAY) if name in rows]
        if taken:
            raise BadData(
                f"the rows have a column {taken[0]!r}, which is what the data set calls the "
                f"{taken[0]} of a row; give the feature another name"
            )
        return cls(rows, found, on)


def adopt(
    model: Any,
    name: str,
    rows: "pd.DataFrame",
    labels: Sequence[Any],
    days: Sequence[Any],
    gate: Sequence[Condition] = GATE,
) -> Adopted:
    """Register a fitted scikit-learn or XGBoost classifier and judge it; again is the same version.

    Raises:
        BadData: the rows do not fit each other, or the model.
        ModelUnusable: it cannot be kept without code of its own.
        ConfigurationError, TrackingUnavailable, RegistryUnavailable: no MLflow.
    """
    later = Later.of(rows, labels, days)
    with open_installation(load_settings()) as installation:
        uri = installation.tracking_uri()
        with _saved(installation, model, name, rows) as (folder, digest):
            candidate = load_model(folder)  # as a server would, or it is not taken
            manifest = _freeze(installation, name, later)
            training = _training(installation, name, manifest, folder, digest)
            before = _made(installation, name, training)
            if before is not None and before[1] is not None:
                return Adopted(name, before[0], training.served_name, before[1])
            verdict = _judged(installation, name, candidate, later, training, gate)
            Tracking(uri).verdict(training.training_id, verdict)  # first: it may be away
            with installation.database.transaction() as session:
                add_verdict(session, verdict)
            served = (training.served_name, training.digest)
            version = make_version(
                installation, training, served, Path(training.path), verdict.verdict_id
            )
    return Adopted(name, version, training.served_name, verdict)


@contextmanager
def _saved(
    installation: Installation, model: Any, name: str, rows: "pd.DataFrame"
) -> Iterator[tuple[Path, str]]:
    """The model's folder under its served name, and its digest. It appears whole, once."""
    home = installation.settings.home / "tabular"
    fresh = home / f".{name}.adopted"
    shutil.rmtree(fresh, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    try:
        _save(model, fresh, rows, {**FOREIGN, "name": name})
        digest = model_digest(fresh, list(rows.columns))
        kept = home / served_name(name, digest)
        if not kept.exists():
            fresh.rename(kept)
        yield kept, digest
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _save(model: Any, folder: Path, rows: "pd.DataFrame", about: Mapping[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        with _fitting():
            example = rows.head(EXAMPLE_ROWS).astype(float)
            if hasattr(model, "get_booster"):
                save_booster(model.get_booster(), folder, example, about)
            else:
                save_estimator(model, folder, example, about)
    except MlflowException as error:
        raise ModelUnusable(f"a {type(model).__name__} is not kept: {error.message}") from error


@contextmanager
def _fitting() -> Iterator[None]:
    """What a model says of rows that are not for it, as BadData."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise BadData(f"the rows do not fit: {error}") from error


def _freeze(installation: Installation, name: str, later: Later) -> Manifest:
    """The rows that it is judged on, as a data set of their own folder; it appears whole, once."""
    root = installation.lifecycle_dir / name / "adopted"
    fresh = root / f".{secrets.token_hex(8)}.new"
    fresh.mkdir(parents=True)
    try:
        table = later.table.assign(**{LABEL: later.labels, DAY: later.days})
        table.to_parquet(fresh / TEST, index=False)
        manifest = seal(fresh, name, {TEST: len(table)}, FOREIGN)
        folder = root / manifest.dataset_id
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    with installation.database.transaction() as session:
        datasets.record(session, manifest, folder)
    return manifest


def _training(
    installation: Installation, name: str, manifest: Manifest, folder: Path, digest: str
) -> TrainingRow:
    """The record of a training of which nothing is known; found again by what it made."""
    query = {"served_name": folder.name, "dataset_id": manifest.dataset_id}
    with installation.database.session() as session:
        found = session.query(TrainingRow).filter_by(**query).first()
    if found is not None:
        return found
    journal = installation.lifecycle_dir / name / "adopted.journal"
    tags = {"kind": "tabular", **query, **FOREIGN}
    run = Tracking(installation.tracking_uri()).start(
        name, tags=tags, params=query, journal=journal
    )
    with run:
        run.artifacts(folder, ARTIFACT)
    row = TrainingRow(
        training_id=run.training_id,
        name=name,
        kind="tabular",
        base_model="",
        base_digest="",
        digest=digest,
        path=str(folder),
        configuration=dict(FOREIGN),
        metrics={},
        git_sha=git_sha(),
        created_at=now(),
        **query,
    )
    with installation.database.transaction() as session:
        session.add(row)
    journal.unlink(missing_ok=True)
    return row


def _made(
    installation: Installation, name: str, training: TrainingRow
) -> tuple[str, Verdict | None] | None:
    with installation.database.session() as session:
        query = {"name": name, "training_id": training.training_id}
        row = session.query(ModelVersionRow).filter_by(**query).first()
        if row is None:
            return None
        verdict = None if row.verdict_id is None else find_verdict(session, row.verdict_id)
        return row.version, verdict


def _judged(
    installation: Installation,
    name: str,
    candidate: TabularModel,
    later: Later,
    training: TrainingRow,
    gate: Sequence[Condition],
) -> Verdict:
    """The gate's word on champion and candidate, on the same rows."""
    with installation.database.session() as session:
        champion = champion_of(session, name)
        row = find_version(session, champion.name_or(name), champion.version)
    rows = Rows.of(later.labels, later.days)
    resamples = Resamples.of(rows, seed=SEED)
    champion_model = None if row is None else load_model(Path(row.path))
    with _fitting():
        before = np.full(len(later.labels), later.labels.mean())
        if champion_model is not None:
            before = champion_model.probabilities(later.table)
        after = candidate.probabilities(later.table)
    measured = {
        metric: resamples.measured(metric, function(rows, before), function(rows, after))
        for metric, function in METRICS.items()
    }
    return judge(
        candidate.name,
        BASE if row is None else row.served_name,
        measured,
        gate,
        evidence={
            "training_id": training.training_id,
            "dataset_id": training.dataset_id,
            **FOREIGN,
        },
    )
