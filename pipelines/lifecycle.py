"""The lifecycle of a model, written once for every kind: build the data set, fit, evaluate against
the champion, judge by the gate, register. What differs between kinds is in `pipelines.kinds`.

Nothing here moves traffic: a registered candidate gets its share through an experiment
(`pipelines.experiment`), and only a verdict moves the champion (`pipelines.promotion`).
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from evals.cases import load_cases
from evals.gate import judge
from evals.records import Answer, Case, Decision, Verdict
from evals.scorers import SCORERS, score_all
from evals.verdicts import add_verdict
from gateway.configuration import ConfigurationError
from gateway.database import now
from gateway.errors import BadRequest
from gateway.splits import find_split
from pipelines import datasets
from pipelines.installation import Installation
from pipelines.kinds import Fitted, FormerKind, Say
from pipelines.llm import LLM
from pipelines.manifest import read_manifest
from pipelines.registry import Registry
from pipelines.registry_records import note_registration
from pipelines.spec import Spec
from pipelines.tables import ModelVersionRow, TrainingRow
from pipelines.tracking import TrackedRun, Tracking

KINDS: Mapping[str, FormerKind] = {"llm": LLM}
BASE = "base"
TRAINING_FILE, VERDICT_FILE, VERSION_FILE = "training.json", "verdict.json", "version.json"
FITTED = "fitted"


class EvaluationFailed(RuntimeError):
    """Champion or candidate did not answer every case; the message says who and why."""


def kind_of(spec: Spec) -> FormerKind:
    """The kind that `spec` names; ConfigurationError if there is none."""
    if spec.kind not in KINDS:
        raise ConfigurationError(f"kind: no kind {spec.kind!r} (there are: {', '.join(KINDS)})")
    return KINDS[spec.kind]


def require_usable(installation: Installation, spec: Spec) -> None:
    """Find mistakes in a spec now that would else show after an hour of training.

    Raises: ConfigurationError.
    """
    kind, measured = kind_of(spec), spec.evaluation.scorers
    unknown = [name for name in measured if name not in SCORERS]
    if unknown:
        known = ", ".join(SCORERS)
        raise ConfigurationError(f"evaluation.scorers: no {unknown[0]!r} (there are: {known})")
    for condition in spec.gate:
        if condition.metric not in measured:
            raise ConfigurationError(
                f"gate: {condition.metric} is none of evaluation.scorers: {', '.join(measured)}"
            )
    installation.tracking_uri()
    kind.check(installation, spec)


def build_dataset(installation: Installation, spec: Spec, out: Path, say: Say) -> str:
    """Freeze a data set into `out` and record it; returns its id."""
    say(0, "reading feedback and request log")
    manifest = kind_of(spec).build_dataset(installation, spec, out)
    with installation.database.transaction() as session:
        datasets.record(session, manifest, out)
    say(100, f"data set {manifest.dataset_id}")
    return manifest.dataset_id


def fit(installation: Installation, spec: Spec, dataset: Path, out: Path, say: Say) -> str:
    """Train on the folder `dataset`, log to MLflow, record; returns the training's id.

    Training that was killed goes on from its last checkpoint; one that was finished but could not
    be logged is not done again.
    """
    dataset_id, work = read_manifest(dataset).dataset_id, work_folder(installation, spec)
    journal = work.with_name("metrics.journal")
    tracked = _tracked(installation, spec, dataset_id, journal)
    with tracked:

        def log(step: int, metrics: Mapping[str, float]) -> None:
            tracked.log(step, metrics)
            steps = int(metrics.get("steps", 0)) or step
            loss = f" loss {metrics['loss']:.3f}" if "loss" in metrics else ""
            say(min(99, 100 * step // max(steps, 1)), f"step {step}/{steps}{loss}")

        fitted = kind_of(spec).fit(installation, spec, dataset, work / FITTED, log)
        shutil.copytree(fitted.path, out / "adapter")
        tracked.log(0, {f"final/{name}": value for name, value in fitted.metrics.items()})
        tracked.artifacts(fitted.path)
    described = _training(spec, dataset_id, tracked.training_id, fitted)
    _record_training(installation, described, keep_adapter(installation, fitted))
    _write(out / TRAINING_FILE, described)
    shutil.rmtree(work)
    journal.unlink()
    say(100, f"{fitted.served_name}: loss {fitted.metrics.get('last_loss', float('nan')):.3f}")
    return tracked.training_id


def evaluate(
    installation: Installation, spec: Spec, training: Path, out: Path, say: Say
) -> Verdict:
    """Ask champion and candidate every held-out case through the engine; judge by the gate."""
    kind, described = kind_of(spec), _read(training / TRAINING_FILE)
    candidate, cases = described["adapter"], load_cases(spec.cases_path)[: spec.evaluation.limit]
    say(0, f"loading {candidate} on every replica")
    started = monotonic()
    kind.serve(installation, spec, candidate, installation.adapters_dir / candidate)
    rollout_seconds = round(monotonic() - started, 3)
    champion = champion_adapter(installation, spec.alias)
    before = _answers(installation, spec, champion, cases, _part(say, 0, champion or BASE))
    after = _answers(installation, spec, candidate, cases, _part(say, 50, candidate))
    verdict = judge(
        candidate,
        champion or BASE,
        _results(spec, cases, before, after),
        spec.gate,
        evidence={
            "training_id": described["training_id"],
            "dataset_id": described["dataset_id"],
            "cases": spec.evaluation.cases,
            "case_count": len(cases),
            "rollout_seconds": rollout_seconds,
        },
    )
    for name, answers in (("champion", before), ("candidate", after)):
        lines = (orjson.dumps(asdict(answer)) for answer in answers)
        (out / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with installation.database.transaction() as session:
        add_verdict(session, verdict)
    Tracking(installation.tracking_uri()).verdict(described["training_id"], verdict)
    _write(out / VERDICT_FILE, verdict.as_dict())
    say(100, f"{verdict.decision}: {verdict.reasons[0]}")
    return verdict


def register(
    installation: Installation, spec: Spec, training: Path, evaluation: Path, out: Path, say: Say
) -> str:
    """Make a version of a candidate whose verdict is `promote`; returns the version.

    Raises: BadRequest for any other verdict.
    """
    described, verdict = _read(training / TRAINING_FILE), _read(evaluation / VERDICT_FILE)
    if verdict["decision"] != Decision.PROMOTE or verdict["subject"] != described["adapter"]:
        raise BadRequest(
            f"{described['adapter']}: the verdict {verdict['verdict_id']} on {verdict['subject']} "
            f"is {verdict['decision']}, so it is not registered: {verdict['reasons'][0]}"
        )
    say(0, f"registering {described['adapter']}")
    version = register_version(
        installation, spec, described["training_id"], verdict_id=verdict["verdict_id"]
    )
    _write(out / VERSION_FILE, {"name": spec.name, "version": version})
    say(100, f"{spec.name} version {version}")
    return version


def register_version(
    installation: Installation,
    spec: Spec,
    training_id: str,
    *,
    verdict_id: str | None,
    adapter: tuple[str, str] | None = None,
    description: str = "",
) -> str:
    """A version of the training's adapter in MLflow's registry and in the state database.

    `adapter`: name and digest of another adapter that was made from it (a drill's). The same
    adapter again is the same version.
    """
    with installation.database.session() as session:
        training = session.get_one(TrainingRow, training_id)
    served, digest = adapter or (training.adapter, training.adapter_digest)
    path = installation.adapters_dir / served
    tags = {
        "adapter": served,
        "adapter_digest": digest,
        "base_digest": training.base_digest,
        "dataset_id": training.dataset_id,
        "training_id": training_id,
        "verdict_id": verdict_id,
        "git_sha": training.git_sha,
    }
    registry = Registry(installation.tracking_uri())
    version = registry.register(spec.name, training_id, path, tags, description)
    with installation.database.transaction() as session:
        if session.get(ModelVersionRow, (spec.name, version)) is None:
            row = ModelVersionRow(
                name=spec.name,
                version=version,
                training_id=training_id,
                verdict_id=verdict_id,
                adapter=served,
                adapter_path=str(path),
                created_at=now(),
            )
            session.add(row)
            note_registration(session, row)
    return version


def champion_adapter(installation: Installation, alias: str) -> str | None:
    """The adapter that answers `alias` outside of experiments; None is the plain model."""
    with installation.database.session() as session:
        split = find_split(session, alias)
    if split is None:
        return None
    arms = {arm.variant.name: arm.variant for arm in split.arms}
    return arms["champion"].adapter if "champion" in arms else split.arms[0].variant.adapter


def work_folder(installation: Installation, spec: Spec) -> Path:
    """Where a training under way keeps what a later pass goes on from."""
    return installation.lifecycle_dir / spec.name / "work"


def keep_adapter(installation: Installation, fitted: Fitted) -> Path:
    """The adapter's lasting folder, named as it is served; appears whole, once."""
    kept = installation.adapters_dir / fitted.served_name
    if not kept.exists():
        fresh = kept.with_name(f".{kept.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(fitted.path, fresh)
        fresh.rename(kept)
    return kept


def git_sha() -> str | None:
    """The commit that this code is at, with `-dirty` if it was changed; None outside of Git."""
    here = Path(__file__).parent
    command = ("git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _tracked(installation: Installation, spec: Spec, dataset_id: str, journal: Path) -> TrackedRun:
    """The training's run in MLflow; the same one for each attempt at the same training."""
    from rlhf.adapter import base_digest

    base = installation.model_folder(spec.base_model)
    tags = {
        "dataset_id": dataset_id,
        "base_digest": base_digest(base),
        "git_sha": git_sha(),
        "alias": spec.alias,
    }
    params = spec.training | {"base_model": spec.base_model, "base_folder": base.name}
    tracking = Tracking(installation.tracking_uri())
    return tracking.start(spec.name, tags=tags, params=params, journal=journal)


def _answers(
    installation: Installation,
    spec: Spec,
    who: str | None,
    cases: Sequence[Case],
    say: Say,
) -> list[Answer]:
    """What `who` answers to every case.

    Raises: EvaluationFailed where one got no answer: an engine's trouble is no model's fault, and
        would make a champion look worse than it is.
    """
    answers = kind_of(spec).answer(installation, spec, who, cases, say)
    failed = [one for one in answers if one.error is not None]
    if failed:
        raise EvaluationFailed(
            f"{len(failed)} of {len(cases)} cases got no answer from {who or BASE}, so nothing was "
            f"judged: {failed[0].error}"
        )
    return answers


def _results(
    spec: Spec, cases: Sequence[Case], before: Sequence[Answer], after: Sequence[Answer]
) -> dict[str, tuple[list[float | None], list[float | None]]]:
    """Per metric the values of champion and candidate, in the order of the cases."""
    scorers = [SCORERS[name] for name in spec.evaluation.scorers]
    results: dict[str, tuple[list[float | None], list[float | None]]] = {}
    for side, answers in enumerate((before, after)):
        for score in score_all(cases, answers, scorers):
            results.setdefault(score.metric, ([], []))[side].append(score.value)
    return results


def _training(spec: Spec, dataset_id: str, training_id: str, fitted: Fitted) -> dict[str, Any]:
    return {
        "training_id": training_id,
        "name": spec.name,
        "dataset_id": dataset_id,
        "base_model": fitted.base_model,
        "base_digest": fitted.base_digest,
        "adapter": fitted.served_name,
        "adapter_digest": fitted.digest,
        "configuration": spec.training,
        "metrics": dict(fitted.metrics),
        "git_sha": git_sha(),
    }


def _record_training(installation: Installation, described: dict[str, Any], kept: Path) -> None:
    with installation.database.transaction() as session:
        if session.get(TrainingRow, described["training_id"]) is None:
            session.add(TrainingRow(**described, adapter_path=str(kept), created_at=now()))


def _part(say: Say, start: int, who: str) -> Say:
    """Half of a stage's progress."""
    return lambda percent, what: say(start + percent // 2, f"{who}: {what}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content
