"""The stages of the train pipeline as plain functions: `dataset → train → evaluate → register`.

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
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from gateway.configuration import ConfigurationError
from gateway.errors import GatewayError
from gateway.request_log import LogUnavailable
from gateway.settings import SettingsError, load_settings
from pipelines import lifecycle
from pipelines.installation import Installation, open_installation
from pipelines.kinds import Say
from pipelines.spec import Spec, load_spec

FAILURES = (
    ConfigurationError, GatewayError, LogUnavailable, SettingsError, SQLAlchemyError, OSError,
    ValueError, RuntimeError,
)  # fmt: skip


def dataset(spec: Path, out: Path, say: Say | None = None) -> None:
    """Freeze what feedback and log say now into `out`: train, validation, manifest."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.build_dataset(installation, given, folder, say or _silent)


def train(spec: Path, dataset: Path, out: Path, say: Say | None = None) -> None:
    """Train on the folder `dataset`; `out` holds the candidate and `training.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.fit(installation, given, dataset, folder, say or _silent)


def evaluate(spec: Path, training: Path, out: Path, say: Say | None = None) -> None:
    """Ask champion and candidate the held-out cases; `out` holds the answers and `verdict.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.evaluate(installation, given, training, folder, say or _silent)


def register(
    spec: Path, training: Path, evaluation: Path, out: Path, say: Say | None = None
) -> None:
    """Register a candidate whose verdict is `promote`; `out` holds `version.json`."""
    with _stage(spec, out) as (installation, given, folder):
        lifecycle.register(installation, given, training, evaluation, folder, say or _silent)


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
    "dataset": (dataset, ()),
    "train": (train, ("dataset",)),
    "evaluate": (evaluate, ("training",)),
    "register": (register, ("training", "evaluation")),
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
