"""A former run done again: the code that it was trained by, its data set by its id, its spec; then
what was measured beside what is recorded.

Everything happens in a scratch folder with a home of its own, in which the served models and base
models of this one are linked. The state database and MLflow are not written to.
"""

import math
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from evals.records import Verdict
from evals.verdicts import find_verdict
from gateway.errors import BadRequest, NotFound
from pipelines.champion import BASE
from pipelines.code_version import DIRTY, PACKAGES
from pipelines.dvc_process import CHECKOUT, LAST_LINES, stage_environment
from pipelines.installation import Installation
from pipelines.kinds import Say
from pipelines.lifecycle import kind_of
from pipelines.measurements import Results
from pipelines.repeat import REPEATED
from pipelines.spec import Spec
from pipelines.tables import RunRow, TrainingRow
from pipelines.workspace import workspace_of

TOLERANCE = 1e-6
OF_THE_MACHINE = ("seconds", "latency")  # such metrics are shown, and never the same


class ReproductionFailed(RuntimeError):
    """The run could not be done again; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as it is recorded and as it came out now; None where there was none."""

    name: str
    recorded: float | None
    again: float | None

    def same(self, tolerance: float) -> bool:
        """Whether they are the same within `tolerance`, relative to the recorded one."""
        if self.of_the_machine:
            return True
        if self.recorded is None or self.again is None:
            return self.recorded is self.again
        return math.isclose(self.recorded, self.again, rel_tol=tolerance, abs_tol=tolerance)

    @property
    def of_the_machine(self) -> bool:
        """Whether it says how fast a machine was."""
        return any(word in self.name for word in OF_THE_MACHINE)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of it.

    Attributes:
        commit: that was checked out: of the training, which later runs may have taken over.
        identical: whether the candidate learnt the same, to the last bit.
        inputs: what of the inputs is not as it was, each as a sentence.
        unmeasured: why nothing could be measured, where only the training was repeated.
    """

    run_id: str
    commit: str
    dataset_id: str
    identical: bool
    figures: tuple[Figure, ...]
    inputs: tuple[str, ...]
    unmeasured: str | None

    def different(self, tolerance: float) -> list[Figure]:
        """Figures that are not the same."""
        return [one for one in self.figures if not one.same(tolerance)]


@dataclass(frozen=True, slots=True)
class _Recorded:
    run: RunRow
    training: TrainingRow
    verdict: Verdict | None

    @property
    def champion(self) -> str | None:
        known = self.verdict is not None and self.verdict.baseline != BASE
        return self.verdict.baseline if known and self.verdict is not None else None


def reproduce(installation: Installation, run_id: str, scratch: Path, say: Say) -> Reproduction:
    """Do the run `run_id` again in the folder `scratch`, which is empty.

    Raises:
        NotFound: there is no such run, or it trained nothing.
        BadRequest: it was not run at a commit.
        WorkspaceError: its data set cannot be fetched, or is not what it was.
        ReproductionFailed: its commit is not here, or its code fails now.
    """
    with installation.database.session() as session:
        recorded = _recorded(session, run_id)
    commit = (recorded.training.git_sha or "").removesuffix(DIRTY)
    if not commit:
        raise BadRequest(f"run {run_id} did not train at a commit, so its code is not known")
    dataset_id = recorded.training.dataset_id
    say(0, f"fetching data set {dataset_id}")
    dataset = workspace_of(installation, recorded.run.name).checkout(dataset_id)
    say(10, f"checking out {commit[:12]}")
    code = _checkout(commit, scratch / "code")
    spec = Spec.model_validate(recorded.run.spec)
    out = scratch / "out"
    out.mkdir()
    (scratch / "spec.yaml").write_text(spec.text())
    _home(installation, spec, scratch / "home")
    arguments = ["--spec", "../spec.yaml", "--dataset", str(dataset.absolute()), "--out", "../out"]
    if recorded.champion is not None:
        arguments += ["--champion", recorded.champion]
    _run(installation, code, scratch / "home", arguments, say)
    return _compared(recorded, commit, out)


def _recorded(session: Session, run_id: str) -> _Recorded:
    run = session.get(RunRow, run_id)
    if run is None or run.training_id is None:
        raise NotFound(f"there is no run {run_id[:64]!r} that trained anything", param="run")
    training = session.get_one(TrainingRow, run.training_id)
    verdict = find_verdict(session, run.verdict_id) if run.verdict_id else None
    return _Recorded(run, training, verdict)


def _checkout(commit: str, folder: Path) -> Path:
    clone = ("git", "clone", "--quiet", "--shared", "--no-checkout", str(CHECKOUT), str(folder))
    for command in (clone, ("git", "-C", str(folder), "checkout", "--quiet", commit)):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReproductionFailed(
                f"{CHECKOUT}: commit {commit[:12]} cannot be checked out: {done.stderr.strip()}; "
                "fetch it, then try again"
            )
    return folder


def _home(installation: Installation, spec: Spec, home: Path) -> None:
    """A home in which what is served here is linked, and what is new lies beside it."""
    real = installation.settings.home.absolute()
    served = kind_of(spec).folder(installation).absolute()
    own = home / served.relative_to(real)
    own.mkdir(parents=True)
    for folder in served.glob("*-*"):
        (own / folder.name).symlink_to(folder)
    for name in ("models", "data", "features"):
        if (real / name).exists():
            (home / name).symlink_to(real / name)


def _run(
    installation: Installation, code: Path, home: Path, arguments: list[str], say: Say
) -> None:
    """Repeat in the checkout: its code, the scratch home, our configuration."""
    url = f"sqlite:///{home.absolute() / 'state.db'}"
    environment = stage_environment(installation.settings) | {
        "LLMOPS_HOME": str(home.absolute()),
        "LLMOPS_DATABASE_URL": url,
        "PYTHONPATH": str(code.absolute()),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.repeat", *arguments],
        cwd=code,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said: dict[str, Any] = {}
    last: deque[str] = deque(maxlen=LAST_LINES)
    for line in process.stdout or ():
        last.append(line.rstrip())
        try:
            said = orjson.loads(line)
            say(min(99, 10 + int(said["percent"]) * 9 // 10), str(said["what"]))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue  # a library's own words, or the reason why it failed
    if process.wait():
        reason = said.get("error") if isinstance(said, dict) else None
        told = reason or "\n".join(last)
        raise ReproductionFailed(f"the code of that commit cannot do it again here: {told}")


def _compared(recorded: _Recorded, commit: str, out: Path) -> Reproduction:
    found: dict[str, Any] = orjson.loads((out / REPEATED).read_bytes())
    training, verdict = recorded.training, recorded.verdict
    figures = [
        Figure(f"training/{name}", training.metrics.get(name), found["metrics"].get(name))
        for name in {**training.metrics, **found["metrics"]}
    ]
    if found["unmeasured"] is None and verdict is not None:
        again = Results.read(out).results()
        for metric in verdict.metrics:
            now = again.get(metric.name)
            for side in ("baseline", "candidate"):
                value = None if now is None else getattr(now, side)
                figures.append(Figure(f"{metric.name}/{side}", getattr(metric, side), value))
    return Reproduction(
        run_id=recorded.run.run_id,
        commit=commit,
        dataset_id=training.dataset_id,
        identical=found["digest"] == training.digest,
        figures=tuple(figures),
        inputs=tuple(_other_inputs(recorded, found)),
        unmeasured=found["unmeasured"],
    )


def _other_inputs(recorded: _Recorded, found: Mapping[str, Any]) -> Iterator[str]:
    """What went in and is not as it was. The data set is: its files were compared with its id."""
    training = recorded.training
    learnt, measured = training.git_sha or "", recorded.run.git_sha or ""
    for sha in sorted({learnt, measured}):
        if sha.endswith(DIRTY):
            changed = sha.removesuffix(DIRTY)[:12]
            yield f"git: the run's code was not that of {changed}: it was changed"
    if measured != learnt:
        yield (
            f"git: the run measured at {measured[:12] or 'no commit'} what had been trained at "
            f"{learnt[:12]}"
        )
    if found["base_digest"] != training.base_digest:
        yield (
            f"base model: its digest is {found['base_digest'][:12] or 'none'}, "
            f"it was {training.base_digest[:12] or 'none'}"
        )
    then: Mapping[str, str] = training.configuration.get(PACKAGES) or {}
    now: Mapping[str, str] = found["packages"]
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            known = f"it was {then[name]}" if name in then else "it is not known what it was"
            yield f"package {name}: {now.get(name) or 'none'} is installed, {known}"
