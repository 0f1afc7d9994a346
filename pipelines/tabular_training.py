"""Training of a tabular model: a small search, judged by what came later, and calibrated by what
came later still.

The training days are cut in three, in the order of time:

    fitted on ............ | validation ..... | calibration ....      | test (not seen here)

Each trial is fitted on the first part, and the one with the least log loss on the second is chosen.
It is fitted again on both, and the third part brings its probabilities in line. The same rows and
seed give the same model: there is one thread, so floats are summed in the same order on every
machine. It is quicker too where others use the cores, for threads that wait for each other spin.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals.classification import Rows, auc, log_loss
from pipelines.tabular_candidates import CANDIDATES, Candidate, Model, Parameters
from pipelines.tabular_rows import BadData, TabularRows
from pipelines.tabular_spec import TabularTraining

if TYPE_CHECKING:
    pass

LogTrial = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """Parameters of an algorithm that were tried, and how they did on the validation days."""

    algorithm: str
    parameters: Parameters
    log_loss: float
    auc: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The model that was chosen, and all that was tried, in its order."""

    model: Model
    best: Trial
    trials: tuple[Trial, ...]

    @property
    def candidate(self) -> Candidate:
        """How the model is asked and saved."""
        return CANDIDATES[self.best.algorithm]


def train(rows: TabularRows, training: TabularTraining, log: LogTrial) -> Trained:
    """Search, choose, fit again and calibrate; `log` hears of each trial.

    Raises: BadData: too few days, or a part of them of one class.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return _trained(rows, training, log)


def _trained(rows: TabularRows, training: TabularTraining, log: LogTrial) -> Trained:
    first, second, third = _parts(rows, training)
    trials = []
    plan = _plan(training)
    for step, (algorithm, parameters) in enumerate(plan, 1):
        trial = _tried(algorithm, parameters, first, second, training.seed)
        trials.append(trial)
        log(step, {"steps": len(plan), "loss": trial.log_loss, "auc": trial.auc})
    best = min(trials, key=lambda trial: trial.log_loss)
    candidate = CANDIDATES[best.algorithm]
    fitted = rows.where(rows.days < third.days.min()) if len(third) else rows
    model = candidate.fit(best.parameters, fitted.features, fitted.labels, training.seed)
    if training.calibration != "none":
        model = candidate.calibrate(model, third.features, third.labels)
    return Trained(model, best, tuple(trials))


def _plan(training: TabularTraining) -> list[tuple[str, Parameters]]:
    """What is tried: `search` times each algorithm, and of each the fixed parameters first."""
    draw = np.random.default_rng(training.seed)
    return [
        (name, CANDIDATES[name].first if number == 0 else CANDIDATES[name].draw(draw))
        for name in training.candidates
        for number in range(training.search)
    ]


def _tried(
    algorithm: str, parameters: Parameters, learn: TabularRows, later: TabularRows, seed: int
) -> Trial:
    candidate = CANDIDATES[algorithm]
    model = candidate.fit(parameters, learn.features, learn.labels, seed)
    scores = candidate.probabilities(model, later.features)
    rows = Rows.of(later.labels, np.zeros(len(later)))
    loss, area = (float(metric(rows, scores)(rows.whole)[0]) for metric in (log_loss, auc))
    return Trial(algorithm, parameters, loss, area)


def _parts(rows: TabularRows, training: TabularTraining) -> Sequence[TabularRows]:
    """The rows to fit on, to validate and to calibrate on, cut between days."""
    days = np.unique(rows.days)
    calibrated = 0.0 if training.calibration == "none" else training.calibration_share
    ends = [1 - calibrated - training.validation_share, 1 - calibrated]
    cuts = [round(end * len(days)) for end in ends]
    names = ("fit", "validation", "calibration")
    parts = []
    for name, some in zip(names, np.split(days, cuts), strict=True):
        part = rows.where(np.isin(rows.days, some))
        if name == "calibration" and not calibrated:
            parts.append(part)
            continue
        if not len(part):
            raise BadData(
                f"training: {len(days)} days of rows are too few to keep some for {name}; widen "
                "dataset.since to dataset.until"
            )
        part.require_both_classes(f"training, {name} days")
        parts.append(part)
    return parts
