"""What champion and candidate measured, as a file between the stages `evaluate` and `gate`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson

from evals.compare import Measured
from evals.gate import Measurement, judge
from evals.records import MetricResult
from pipelines.kinds import Measurements

RESULTS_FILE = "results.json"


@dataclass(frozen=True, slots=True)
class Results:
    """A candidate beside the champion (None: the plain model, or nothing) on the held-out cases.

    Attributes:
        rollout_seconds: until every replica answered as the candidate.
        measurements: by metric.
    """

    candidate: str
    champion: str | None
    training_id: str
    dataset_id: str
    rollout_seconds: float
    measurements: Measurements

    def write(self, folder: Path) -> None:
        """Put it into `folder`."""
        fields: dict[str, Any] = {
            "candidate": self.candidate,
            "champion": self.champion,
            "training_id": self.training_id,
            "dataset_id": self.dataset_id,
            "rollout_seconds": self.rollout_seconds,
            "measurements": {name: _plain(one) for name, one in self.measurements.items()},
        }
        (folder / RESULTS_FILE).write_bytes(orjson.dumps(fields, option=orjson.OPT_INDENT_2))

    def means(self) -> dict[str, float]:
        """Of each metric, the candidate's value or mean, as far as it is known."""
        found: dict[str, float | None] = {}
        for name, one in self.measurements.items():
            if isinstance(one, Measured):
                found[name] = one.candidate
                continue
            known = [value for value in one[1] if value is not None]
            found[name] = fmean(known) if known else None
        return {f"candidate/{name}": one for name, one in found.items() if one is not None}

    def results(self) -> dict[str, MetricResult]:
        """Both sides of each metric, as a gate without conditions has them."""
        empty = judge(self.candidate, self.champion or "", self.measurements, (), {})
        return {one.name: one for one in empty.metrics}

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """What lies in `folder`."""
        fields: dict[str, Any] = orjson.loads((folder / RESULTS_FILE).read_bytes())
        given: Mapping[str, Any] = fields.pop("measurements")
        read = {name: _measurement(one) for name, one in given.items()}
        return cls(**fields, measurements=read)


def _plain(one: Measurement) -> dict[str, Any]:
    """As JSON has it; what was measured over all cases has its draws."""
    if isinstance(one, Measured):
        return asdict(one)
    return {"baseline": list(one[0]), "candidate": list(one[1])}


def _measurement(fields: Mapping[str, Any]) -> Measurement:
    if "draws" in fields:
        return Measured(**{**fields, "draws": tuple(fields["draws"])})
    return fields["baseline"], fields["candidate"]
