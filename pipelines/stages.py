"""The stages of the train pipeline as plain functions, the same ones for every kind of model:
`preprocess → features → train → evaluate → gate → register → experiment`.

A stage reads the folders of the stages before it and makes one folder, `out`, which appears whole.
What it made it also records in the state database and MLflow, each under an id made from its
content or kept in its folder: doing it again changes nothing. `dvc repro` runs them as
`python -m pipelines.stages STAGE …`; Kubeflow's components call the same functions.

As a program a stage prints its progress as JSON lines `{"percent": 0-100, "what": text}` and, if it
fails, its reason as `{"error": text}`; its exit code is 1 then.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time

from sqlalchemy.exc import SQLAlchemyError

from gateway.configuration import ConfigurationError
from gateway.errors import GatewayError
from gateway.request_log import LogUnavailable
from gateway.settings import SettingsError, load_settings
from pipelines import lifecycle
from pipelines.first_traffic import FirstTraffic, give_traffic
from pipelines.installation import Installation, open_installation
from pipelines.kinds import Say
from pipelines.spec import Spec, load_spec
from pipelines.step_runs import Noted, tell_step

EXPERIMENT_FILE = "experiment.json"
FAILURES = (
    ConfigurationError, GatewayError, LogUnavailable, SettingsError, SQLAlchemyError, OSError,
    ValueError, RuntimeError,
)  # fmt: skip


def preprocess(spec: Path, out: Path, say: Say | None = None) -> None:
    """Read the raw material as it is now into `out`."""
    with _stage("preprocess", spec, out) as step:
        step.noted = lifecycle.preprocess(*step.place, step.folder, say or _silent)


def features(spec: Path, preprocessed: Path, out: Path, say: Say | None = None) -> None:
    """Make a frozen data set of it: `out` holds its files and `manifest.json`."""
    with _stage("features", spec, out) as step:
        step.noted = lifecycle.features(*step.place, preprocessed, step.folder, say or _silent)


def train(spec: Path, dataset: Path, out: Path, say: Say | None = None) -> None:
    """Train on the folder `dataset`; `out` holds the candidate and `training.json`."""
    with _stage("train", spec, out) as step:
        step.noted = lifecycle.fit(*step.place, dataset, step.folder, say or _silent)


def evaluate(spec: Path, dataset: Path, training: Path, out: Path, say: Say | None = None) -> None:
    """Measure champion and candidate on held-out cases; `out` holds `results.json`."""
    with _stage("evaluate", spec, out) as step:
        step.noted = lifecycle.evaluate(*step.place, dataset, training, step.folder, say or _silent)


def gate(spec: Path, evaluation: Path, out: Path, say: Say | None = None) -> None:
    """Judge the results by the spec's conditions; `out` holds `verdict.json`."""
    with _stage("gate", spec, out) as step:
        step.noted = lifecycle.gate(*step.place, evaluation, step.folder, say or _silent)


def register(spec: Path, training: Path, verdict: Path, out: Path, say: Say | None = None) -> None:
    """Register a candidate whose verdict is `promote`; `out` holds `version.json`."""
    with _stage("register", spec, out) as step:
        step.noted = lifecycle.register(*step.place, training, verdict, step.folder, say or _silent)


def experiment(
    spec: Path, version: Path, out: Path, say: Say | None = None, *, live: bool = True
) -> None:
    """Try the version on live traffic, or promote the first one; `out` holds `experiment.json`.

    Not `live`: leave that to somebody's hand.
    """
    with _stage("experiment", spec, out) as step:
        registered = json.loads((version / lifecycle.VERSION_FILE).read_text())
        begun = FirstTraffic(registered["version"])
        if live:
            begun = give_traffic(*step.place, begun.version)
        (step.folder / EXPERIMENT_FILE).write_text(json.dumps(asdict(begun), indent=2))
        (say or _silent)(100, begun.told)
        plan = step.spec.experiment.model_dump(mode="json", exclude_none=True)
        step.noted = Noted(plan, {"live": float(live)}, asdict(begun))


@dataclass(slots=True)
class _Step:
    """A stage under way. What it noted is told to MLflow when it has ended."""

    installation: Installation
    spec: Spec
    folder: Path
    noted: Noted | None = None

    @property
    def place(self) -> tuple[Installation, Spec]:
        return self.installation, self.spec


@contextmanager
def _stage(stage: str, spec: Path, out: Path) -> Iterator[_Step]:
    """The installation, the spec, and a folder that becomes `out` if the block does not fail."""
    fresh, began = out.with_name(f"{out.name}.new"), time()
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        with open_installation(load_settings()) as installation:
            step = _Step(installation, load_spec(spec), fresh)
            if stage == "preprocess":  # what others need of the spec, that stage has seen
                lifecycle.require_usable(*step.place)
            yield step
            if step.noted is None:
                raise RuntimeError(f"stage {stage} noted nothing of itself")
            tell_step(*step.place, stage, step.noted, began)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _silent(_percent: int, _what: str) -> None:
    return


def _print_progress(percent: int, what: str) -> None:
    sys.stdout.write(json.dumps({"percent": percent, "what": what}) + "\n")
    sys.stdout.flush()


STAGES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "preprocess": (preprocess, ()),
    "features": (features, ("preprocessed",)),
    "train": (train, ("dataset",)),
    "evaluate": (evaluate, ("dataset", "training")),
    "gate": (gate, ("evaluation",)),
    "register": (register, ("training", "verdict")),
    "experiment": (experiment, ("version",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage as a program."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages")
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, (function, inputs) in STAGES.items():
        stage = stages.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        for option in ("spec", *inputs, "out"):
            stage.add_argument(f"--{option}", type=Path, required=True)
    given = vars(parser.parse_args(argv))
    function, _ = STAGES[given.pop("stage")]
    try:
        function(**given, say=_print_progress)
    except FAILURES as error:
        text = error.message if isinstance(error, GatewayError) else str(error)
        sys.stdout.write(json.dumps({"error": text or type(error).__name__}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
