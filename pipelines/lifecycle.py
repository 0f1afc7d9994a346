"""The lifecycle of a model, written once for every kind: read the raw material, freeze a data set,
fit, measure beside the champion, judge by the gate, register. What differs between kinds is in
`pipelines.kinds`.

Nothing here moves traffic: a registered candidate gets its share through an experiment
(`pipelines.first_traffic`), and only a verdict moves the champion (`pipelines.promotion`).
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from evals.gate import judge
from evals.records import Decision
from evals.verdicts import add_verdict
from gateway.configuration import ConfigurationError
from gateway.database import now
from gateway.errors import BadRequest
from pipelines import datasets
from pipelines.champion import BASE, champion_name
from pipelines.code_version import PACKAGES, git_sha, packages
from pipelines.installation import Installation
from pipelines.kinds import Contest, Facts, Fitted, ModelKind, Say
from pipelines.llm import LLM
from pipelines.manifest import Manifest, read_manifest, verify
from pipelines.measurements import Results
from pipelines.registry import ARTIFACT, Registry
from pipelines.registry_records import note_registration
from pipelines.spec import Spec
from pipelines.step_runs import Noted, size_of, step_tags
from pipelines.tables import DatasetRow, ModelVersionRow, TrainingRow
from pipelines.tabular import TABULAR
from pipelines.tracking import TrackedRun, Tracking, figures

KINDS: Mapping[str, ModelKind] = {"llm": LLM, "tabular": TABULAR}
TRAINING_FILE, VERDICT_FILE, VERSION_FILE = "training.json", "verdict.json", "version.json"
ID_FILE = "id"
FITTED = "fitted"


def kind_of(spec: Spec) -> ModelKind:
    """The kind that `spec` names; ConfigurationError if there is none."""
    if spec.kind not in KINDS:
        raise ConfigurationError(f"kind: no kind {spec.kind!r} (there are: {', '.join(KINDS)})")
    return KINDS[spec.kind]


def require_usable(installation: Installation, spec: Spec) -> None:
    """Find mistakes in a spec now that would else show after an hour of training.

    Raises: ConfigurationError.
    """
    kind = kind_of(spec)
    installation.tracking_uri()
    try:
        spec.experiment.settled(installation.configuration.feedback.metrics)
    except ConfigurationError as error:
        raise ConfigurationError(f"experiment.{error}") from error
    kind.check(installation, spec)


def facts_of(installation: Installation, spec: Spec) -> Facts:
    """What stages depend on beside spec and data: the kind's facts, and whom a candidate meets."""
    found = kind_of(spec).facts(installation, spec)
    champion = champion_name(installation.database, spec.alias) or BASE
    return {**found, "evaluate": {**found.get("evaluate", {}), "champion": champion}}


def preprocess(installation: Installation, spec: Spec, out: Path, say: Say) -> Noted:
    """Read the kind's raw material into `out`."""
    kind_of(spec).preprocess(installation, spec, out, say)
    return Noted(spec.dataset, size_of(out))


def features(
    installation: Installation, spec: Spec, preprocessed: Path, out: Path, say: Say
) -> Noted:
    """Freeze a data set into `out` and record it.

    The id is also in the file `id`, which is what later stages depend on: another account of how
    the same data came to be trains nothing again.
    """
    manifest = kind_of(spec).features(installation, spec, preprocessed, out, say)
    (out / ID_FILE).write_text(f"{manifest.dataset_id}\n")
    with installation.database.transaction() as session:
        datasets.record(session, manifest, out)
    say(100, f"data set {manifest.dataset_id}")
    rows = {f"rows/{name}": float(facts.rows) for name, facts in manifest.files.items()}
    return Noted(spec.dataset, rows, {"dataset_id": manifest.dataset_id})


def fit(installation: Installation, spec: Spec, dataset: Path, out: Path, say: Say) -> Noted:
    """Train on the folder `dataset`, log to MLflow, record.

    Training that was killed goes on from its last checkpoint; one that was finished but could not
    be logged is not done again.
    """
    manifest, work = read_manifest(dataset), work_folder(installation, spec)
    verify(dataset, manifest)
    dataset_id, journal = manifest.dataset_id, work.with_name("metrics.journal")
    tracked = _tracked(installation, spec, dataset_id, journal)
    with tracked:

        def log(step: int, metrics: Mapping[str, float]) -> None:
            tracked.log(step, metrics)
            steps = int(metrics.get("steps", 0)) or step
            loss = f" loss {metrics['loss']:.3f}" if "loss" in metrics else ""
            say(min(99, 100 * step // max(steps, 1)), f"step {step}/{steps}{loss}")

        fitted = kind_of(spec).fit(installation, spec, dataset, work / FITTED, log)
        shutil.copytree(fitted.path, out / ARTIFACT)
        tracked.log(0, {f"final/{name}": value for name, value in fitted.metrics.items()})
        tracked.artifacts(fitted.path, ARTIFACT)
    described = _training(spec, dataset_id, tracked.training_id, fitted)
    _record_training(installation, described, keep_model(installation, spec, fitted))
    _write(out / TRAINING_FILE, described)
    shutil.rmtree(work)
    journal.unlink()
    say(100, fitted.served_name)
    ids = {"dataset_id": dataset_id, "served_name": fitted.served_name}
    return Noted(spec.training, fitted.metrics, ids, run_id=tracked.training_id)


def evaluate(
    installation: Installation, spec: Spec, dataset: Path, training: Path, out: Path, say: Say
) -> Noted:
    """Measure champion and candidate on the same held-out cases; `out` gets the results."""
    kind, described = kind_of(spec), _read(training / TRAINING_FILE)
    candidate = described["served_name"]
    say(0, f"loading {candidate} on every replica")
    started = monotonic()
    kind.serve(installation, spec, candidate, kind.folder(installation) / candidate)
    rollout_seconds = round(monotonic() - started, 3)
    champion = champion_name(installation.database, spec.alias)
    contest = Contest(champion, candidate)
    measured = kind.compare(installation, spec, dataset, contest, out, say)
    results = Results(
        candidate=candidate,
        champion=champion,
        training_id=described["training_id"],
        dataset_id=described["dataset_id"],
        rollout_seconds=rollout_seconds,
        measurements=measured,
    )
    results.write(out)
    say(100, f"{len(measured)} metrics of {champion or BASE} and {candidate}")
    params = {**spec.evaluation, "champion": champion or BASE, "candidate": candidate}
    ids = {"dataset_id": results.dataset_id, "training_id": results.training_id}
    return Noted(params, {**results.means(), "rollout_seconds": rollout_seconds}, ids)


def gate(installation: Installation, spec: Spec, evaluation: Path, out: Path, say: Say) -> Noted:
    """Judge what `evaluate` measured by the spec's conditions."""
    results = Results.read(evaluation)
    verdict = judge(
        results.candidate,
        results.champion or BASE,
        results.measurements,
        spec.gate,
        evidence={
            "training_id": results.training_id,
            "dataset_id": results.dataset_id,
            "evaluation": spec.evaluation,
            "rollout_seconds": results.rollout_seconds,
        },
    )
    Tracking(installation.tracking_uri()).verdict(results.training_id, verdict)
    with installation.database.transaction() as session:  # last: what failed before is no verdict
        add_verdict(session, verdict)
    _write(out / VERDICT_FILE, verdict.as_dict())
    say(100, f"{verdict.decision}: {verdict.reasons[0]}")
    params = {one.metric: one.model_dump(mode="json") for one in spec.gate}
    promoted = {"promote": float(verdict.decision is Decision.PROMOTE)}
    ids = {name: verdict.evidence[name] for name in ("dataset_id", "training_id")}
    told = {"verdict_id": verdict.verdict_id, "verdict": verdict.decision.value}
    return Noted(params, promoted | figures(verdict), ids | told)


def register(
    installation: Installation, spec: Spec, training: Path, verdict: Path, out: Path, say: Say
) -> Noted:
    """Make a version of a candidate whose verdict is `promote`.

    Raises: BadRequest for any other verdict.
    """
    described, judged = _read(training / TRAINING_FILE), _read(verdict / VERDICT_FILE)
    candidate = described["served_name"]
    if judged["decision"] != Decision.PROMOTE or judged["subject"] != candidate:
        raise BadRequest(
            f"{candidate}: the verdict {judged['verdict_id']} on {judged['subject']} "
            f"is {judged['decision']}, so it is not registered: {judged['reasons'][0]}"
        )
    say(0, f"registering {candidate}")
    with installation.database.session() as session:
        learnt_from = session.get_one(DatasetRow, described["dataset_id"])
    kind_of(spec).accept(installation, Manifest.parse(learnt_from.manifest))
    version = register_version(
        installation, spec, described["training_id"], verdict_id=judged["verdict_id"]
    )
    _write(out / VERSION_FILE, {"name": spec.name, "version": version})
    say(100, f"{spec.name} version {version}")
    ids = {name: described[name] for name in ("dataset_id", "training_id", "served_name")}
    verdict_id = judged["verdict_id"]
    params = {"served_name": candidate, "verdict_id": verdict_id}
    return Noted(params, {"version": float(version)}, ids | {"verdict_id": verdict_id})


def register_version(
    installation: Installation,
    spec: Spec,
    training_id: str,
    *,
    verdict_id: str | None,
    served: tuple[str, str] | None = None,
    description: str = "",
) -> str:
    """A version of what a training made, in MLflow's registry and in the state database.

    `served`: served name and digest of something else that was made from it (a drill's). The same
    again is the same version.
    """
    with installation.database.session() as session:
        training = session.get_one(TrainingRow, training_id)
    served_name, digest = served or (training.served_name, training.digest)
    path = kind_of(spec).folder(installation) / served_name
    return make_version(
        installation, training, (served_name, digest), path, verdict_id, description
    )


def make_version(
    installation: Installation,
    training: TrainingRow,
    served: tuple[str, str],
    path: Path,
    verdict_id: str | None,
    description: str = "",
) -> str:
    """A version of the files in `path`, in MLflow's registry and in the state database.

    `served`: the name that they are served by, and their digest. Again it is the same version.
    """
    served_name, digest = served
    tags = {
        "kind": training.kind,
        "served_name": served_name,
        "digest": digest,
        "base_digest": training.base_digest or None,
        "dataset_id": training.dataset_id,
        "training_id": training.training_id,
        "verdict_id": verdict_id,
        "git_sha": training.git_sha,
    }
    registry = Registry(installation.tracking_uri())
    version = registry.register(training.name, training.training_id, path, tags, description)
    with installation.database.transaction() as session:
        if session.get(ModelVersionRow, (training.name, version)) is None:
            row = ModelVersionRow(
                name=training.name,
                version=version,
                training_id=training.training_id,
                verdict_id=verdict_id,
                served_name=served_name,
                path=str(path),
                created_at=now(),
            )
            session.add(row)
            note_registration(session, row)
    return version


def work_folder(installation: Installation, spec: Spec) -> Path:
    """Where a training under way keeps what a later pass goes on from."""
    return installation.lifecycle_dir / spec.name / "work"


def keep_model(installation: Installation, spec: Spec, fitted: Fitted) -> Path:
    """The candidate's lasting folder, named as it is served; appears whole, once."""
    kept = kind_of(spec).folder(installation) / fitted.served_name
    if not kept.exists():
        fresh = kept.with_name(f".{kept.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(fitted.path, fresh)
        fresh.rename(kept)
    return kept


def _tracked(installation: Installation, spec: Spec, dataset_id: str, journal: Path) -> TrackedRun:
    """The training's run in MLflow; the same one for each attempt at the same training."""
    found = kind_of(spec).facts(installation, spec).get("train", {})
    tags = {
        "dataset_id": dataset_id,
        **found,
        **step_tags(installation.settings, spec, "train"),
    }
    tracking = Tracking(installation.tracking_uri())
    return tracking.start(spec.name, tags=tags, params=spec.training, journal=journal)


def _training(spec: Spec, dataset_id: str, training_id: str, fitted: Fitted) -> dict[str, Any]:
    return {
        "training_id": training_id,
        "name": spec.name,
        "kind": spec.kind,
        "dataset_id": dataset_id,
        "base_model": fitted.base_model,
        "base_digest": fitted.base_digest,
        "served_name": fitted.served_name,
        "digest": fitted.digest,
        "configuration": {**spec.training, PACKAGES: packages()},
        "metrics": dict(fitted.metrics),
        "git_sha": git_sha(),
    }


def _record_training(installation: Installation, described: dict[str, Any], kept: Path) -> None:
    with installation.database.transaction() as session:
        if session.get(TrainingRow, described["training_id"]) is None:
            session.add(TrainingRow(**described, path=str(kept), created_at=now()))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content
