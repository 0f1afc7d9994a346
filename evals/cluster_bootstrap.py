"""How far a metric's difference of two classifiers may be off: the paired cluster bootstrap.

Rows of one day share its weather, so they say less than as many rows of different days. What is
drawn, with replacement, is therefore whole clusters, the same ones for both subjects (Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Field and Welsh, JRSS B 69,
2007). Too few clusters, or one class only, give no interval and a reason, so a gate holds.
"""

from dataclasses import dataclass

import numpy as np

from evals.classification import Array, Rows, Statistic
from evals.compare import Measured

DRAWS = 1000
LEAST_CLUSTERS = 10
MOST_UNDEFINED = 0.05  # of the draws: more, and those that are left are no fair sample


@dataclass(frozen=True, slots=True)
class Resamples:
    """How often each cluster counts in each draw; the same for every metric and both subjects.

    Attributes:
        unit: what a cluster is, for messages.
    """

    rows: Rows
    times: Array
    unit: str

    @classmethod
    def of(cls, rows: Rows, *, seed: int, draws: int = DRAWS, unit: str = "days") -> "Resamples":
        """Draws of `rows`' clusters; the same seed gives the same ones."""
        if not rows.clusters:
            return cls(rows, np.zeros((0, 0)), unit)
        even = np.full(rows.clusters, 1 / rows.clusters)
        times = np.random.default_rng(seed).multinomial(rows.clusters, even, size=draws)
        return cls(rows, times.astype(float), unit)

    def measured(
        self, name: str, baseline: Statistic, candidate: Statistic, note: str = ""
    ) -> Measured:
        """The metric of both subjects and the draws of its difference; `note` is said with it."""
        rows, clusters = self.rows, self.rows.clusters
        values = [_known(statistic(rows.whole)) for statistic in (baseline, candidate)]
        draws: tuple[float, ...] = ()
        if None in values:
            why = self._undefined()
        elif clusters < LEAST_CLUSTERS:
            why = f"{clusters} {self.unit} of rows, an interval needs {LEAST_CLUSTERS}"
        else:
            differences = candidate(self.times) - baseline(self.times)
            known = differences[np.isfinite(differences)]
            why = ""
            if len(known) < (1 - MOST_UNDEFINED) * len(differences):
                why = f"too few {self.unit} have rows of both classes for an interval"
            else:
                draws = tuple(known.tolist())
        said = "; ".join(text for text in (why, note) if text)
        return Measured(name, values[0], values[1], len(rows), draws, clusters, said)

    def _undefined(self) -> str:
        rows = len(self.rows)
        positives = int(self.rows.labels.sum())
        if not rows:
            return "there are no rows"
        if positives in (0, rows):
            return f"all {rows} rows are of one class ({int(positives > 0)})"
        return "it is not defined on these rows"


def _known(value: Array) -> float | None:
    return float(value[0]) if np.isfinite(value[0]) else None
