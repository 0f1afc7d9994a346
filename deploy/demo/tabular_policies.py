"""Three policies on the same flights: the version that was served, the first one for ever, and one
that is fitted anew at each month's start on all that was known then, without a gate.

The served probabilities are those of the answers; the other two are computed here, on the same
flights with the same features. Intervals come from drawing whole days (`evals.cluster_bootstrap`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.demo.tabular_replay import Answer
from deploy.demo.tabular_terms import start_of
from deploy.demo.tabular_year import ID, LABEL, MOMENT, Table, Year
from evals.records import MetricResult

if TYPE_CHECKING:
    from pipelines.tabular_rows import TabularRows
    from pipelines.tabular_spec import TabularTraining

Array = Any  # numpy's arrays; its types are not known to the type checker
NEVER, MONTHLY, SERVED = "never", "monthly", "served"
POLICIES = (NEVER, MONTHLY, SERVED)


@dataclass(frozen=True, slots=True)
class Scored:
    """Flights whose outcome is known, with each policy's probability of `late`."""

    labels: Array
    days: Array
    probabilities: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.labels)


def joined(parts: Sequence[Scored]) -> Scored:
    """All of them together."""
    import numpy as np

    return Scored(
        labels=np.concatenate([one.labels for one in parts]),
        days=np.concatenate([one.days for one in parts]),
        probabilities={
            name: np.concatenate([one.probabilities[name] for one in parts]) for name in POLICIES
        },
    )


def score(
    year: Year, month: date, answers: Sequence[Answer], first: Path, training: "TabularTraining"
) -> Scored:
    """The month's answered flights by all three policies; `first`: the first version's folder."""
    import numpy as np

    from gateway.tabular_model import load_model

    served = {one.flight_id: one.probability for one in answers}
    table = year.asked[month]
    rows = _rows(table[table[LABEL].notna() & table[ID].isin(served.keys())], year.names)
    return Scored(
        labels=rows.labels,
        days=rows.days,
        probabilities={
            SERVED: np.array([served[name] for name in rows.table[ID]]),
            NEVER: load_model(first).probabilities(rows.features),
            MONTHLY: _refitted(year, month, rows, training),
        },
    )


def compare(scored: Scored, baseline: str, candidate: str, seed: int) -> Mapping[str, MetricResult]:
    """AUC and Brier score of two policies, their difference and its 95 % interval."""
    from evals.classification import Rows, auc, brier
    from evals.cluster_bootstrap import Resamples

    rows = Rows.of(scored.labels, scored.days)
    resamples = Resamples.of(rows, seed=seed)
    one, other = (scored.probabilities[name] for name in (baseline, candidate))
    return {
        name: resamples.measured(name, metric(rows, one), metric(rows, other)).result()
        for name, metric in {"auc": auc, "brier": brier}.items()
    }


def _refitted(year: Year, month: date, rows: "TabularRows", training: "TabularTraining") -> Array:
    """Probabilities of a model that is fitted on everything that was known at the month's start."""
    from pipelines.tabular_training import train

    known = _rows(year.known_before(start_of(month)), year.names)
    trained = train(known, training, lambda _step, _metrics: None)
    return trained.candidate.probabilities(trained.model, rows.features)


def _rows(table: Table, names: Sequence[str]) -> "TabularRows":
    from pipelines.tabular_rows import TabularRows

    ordered = table.sort_values(MOMENT, kind="stable", ignore_index=True)
    days = ordered[MOMENT].dt.tz_localize(None).to_numpy("datetime64[D]")
    labels = ordered[LABEL].astype(float).to_numpy()
    return TabularRows(ordered, tuple(names), labels, days)
