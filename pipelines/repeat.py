"""Train and measure again, apart from everything: nothing is recorded, registered or served.

`python -m pipelines.repeat` is what `pipelines.reproduction` runs in a checkout of a former commit:
the code of that commit, on a data set's folder. Progress is told as by `pipelines.stages`.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from gateway.database import Base
from gateway.errors import GatewayError
from gateway.settings import load_settings
from pipelines.code_version import packages
from pipelines.installation import Installation, open_installation
from pipelines.kinds import Contest, EvaluationFailed
from pipelines.lifecycle import kind_of
from pipelines.measurements import Results
from pipelines.spec import Spec, load_spec
from pipelines.stages import FAILURES

REPEATED = "repeated.json"


def repeat(
    installation: Installation, spec: Spec, dataset: Path, champion: str | None, out: Path
) -> None:
    """Fit on `dataset` and compare with `champion`; `out` gets `repeated.json` and the results.

    Where nothing can be measured (an engine that does not have the candidate), only the training
    is repeated, and `repeated.json` says why.
    """

    def say(percent: int, what: str) -> None:
        sys.stdout.write(orjson.dumps({"percent": percent, "what": what}).decode() + "\n")
        sys.stdout.flush()

    def log(step: int, _metrics: Mapping[str, float]) -> None:
        say(min(step, 99), f"step {step}")

    kind = kind_of(spec)
    fitted = kind.fit(installation, spec, dataset, out / "fitted", log)
    served = kind.folder(installation) / fitted.served_name
    if not served.exists():
        shutil.copytree(fitted.path, served)
    unmeasured = None
    try:
        contest = Contest(champion, fitted.served_name)
        measured = kind.compare(installation, spec, dataset, contest, out, say)
        Results(fitted.served_name, champion, "", "", 0.0, measured).write(out)
    except (EvaluationFailed, OSError) as error:
        unmeasured = str(error)
    found = {
        "served_name": fitted.served_name,
        "digest": fitted.digest,
        "base_digest": fitted.base_digest,
        "metrics": dict(fitted.metrics),
        "packages": packages(),
        "unmeasured": unmeasured,
    }
    (out / REPEATED).write_bytes(orjson.dumps(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat as a program; its exit code is 1 where it failed, and its last line says why."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.repeat")
    for name in ("spec", "dataset", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--champion")
    given = parser.parse_args(argv)
    try:
        with open_installation(load_settings()) as installation:
            Base.metadata.create_all(installation.database.engine)
            spec = load_spec(given.spec)
            repeat(installation, spec, given.dataset, given.champion, given.out)
    except FAILURES as error:
        text = error.message if isinstance(error, GatewayError) else str(error)
        sys.stdout.write(orjson.dumps({"error": text}).decode() + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
