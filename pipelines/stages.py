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
from dataclasses import asdict
from pathlib import Path

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

EXPERIMENT_FILE = "experiment.json"
FAILURES = (
    ConfigurationError, GatewayError, LogUnavailable, SettingsError, SQLAlchemyError, OSError,
    ValueError, RuntimeError,
)  # fmt: skip


def preprocess(spec: Path, out: Path, say: Say | None = None) -> None:
    """Read the raw material as it is now into `out`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.preprocess(installation, given, folder, say or _silent)


def features(spec: Path, preprocessed: Path, out: Path, say: Say | None = None) -> None:
    """Make a frozen data set of it: `out` holds its files and `manifest.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.features(installation, given, preprocessed, folder, say or _silent)


def train(spec: Path, dataset: Path, out: Path, say: Say | None = None) -> None:
    """Train on the folder `dataset`; `out` holds the candidate and `training.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.fit(installation, given, dataset, folder, say or _silent)


def evaluate(spec: Path, dataset: Path, training: Path, out: Path, say: Say | None = None) -> None:
    """Measure champion and candidate on held-out cases; `out` holds `results.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.evaluate(installation, given, dataset, training, folder, say or _silent)


def gate(spec: Path, evaluation: Path, out: Path, say: Say | None = None) -> None:
    """Judge the results by the spec's conditions; `out` holds `verdict.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.gate(installation, given, evaluation, folder, say or _silent)


def register(spec: Path, training: Path, verdict: Path, out: Path, say: Say | None = None) -> None:
    """Register a candidate whose verdict is `promote`; `out` holds `version.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.register(installation, given, training, verdict, folder, say or _silent)


def experiment(
    spec: Path, version: Path, out: Path, say: Say | None = None, *, live: bool = True
) -> None:
    """Try the version on live traffic, or promote the first one; `out` holds `experiment.json`.

    Not `live`: leave that to somebody's hand.
    """
    with _stage(spec, out) as (installation, given, folder):
        registered = json.loads((version / lifecycle.VERSION_FILE).read_text())
        begun = FirstTraffic(registered["version"])
        if live:
            begun = give_traffic(installation, given, begun.version)
        (folder / EXPERIMENT_FILE).write_text(json.dumps(asdict(begun), indent=2))
        (say or _silent)(100, begun.told)


@contextmanager
def _stage(spec: Path, out: Path) -> Iterator[tuple[Installation, Spec, Path]]:
    """The installation, the spec, and a folder that becomes `out` if the block does not fail."""
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        with open_installation(load_settings()) as installation:
            given = load_spec(spec)
            lifecycle.require_usable(installation, given)
            yield installation, given, fresh
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
