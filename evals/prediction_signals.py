"""The signals of predictions: every feature's values and gaps, the probability, the concept.

They are measured by whole blocks of time (`evals.prediction_blocks`), those of the concept on
predictions whose outcome is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from evals import prediction_measures as measures
from evals.comparison import Comparison, Unmeasured
from evals.prediction_blocks import Measure, can_tell, compare, evened, summed
from evals.prediction_window import BLOCK, FEATURE, LABEL, PROBABILITY, RECENT
from evals.shifts import Shift
from evals.signals import Kind, Signal
from evals.windows import Frame

Array = Any

MISSING = "missing."  # before a feature's name
LEAST_VALUES = 100
MOST_LABELS = 50  # of a feature, that are told apart
OTHERS = "(others)"
LEAST_OF: Mapping[str, float] = MappingProxyType({FEATURE: 0.1, MISSING: 0.05})
PREDICTION = Signal("prediction", Kind.NUMBER, PROBABILITY, 0.1)
CONCEPT: Sequence[Signal] = (
    Signal("concept_brier", Kind.CONCEPT, LABEL, 0.01),
    Signal("concept_calibration", Kind.CONCEPT, LABEL, 0.03),
    Signal("concept_auc", Kind.CONCEPT, LABEL, 0.03),
)
NAMES = frozenset(one.name for one in (PREDICTION, *CONCEPT))


def is_known(name: str) -> bool:
    """Whether it names a signal of predictions; features are as many as a model has."""
    return name in NAMES or name.startswith((FEATURE, MISSING))


def signals_of(reference: Frame, window: Frame) -> list[Signal]:
    """Those of two sides: by the columns there are."""
    columns = [one for one in window.columns.union(reference.columns) if one.startswith(FEATURE)]
    found = []
    for column in columns:
        kind = Kind.LABEL if _has_text(column, reference, window) else Kind.NUMBER
        name = MISSING + column.removeprefix(FEATURE)
        found += [
            Signal(column, kind, column, LEAST_OF[FEATURE]),
            Signal(name, Kind.SHARE, column, LEAST_OF[MISSING]),
        ]
    return [*found, PREDICTION, *CONCEPT]


def measure_predictions(
    comparison: Comparison, level: float, least: Mapping[str, float]
) -> list[Shift | Unmeasured]:
    """Every signal that both sides have values of, at its part of `level`, or why it was not."""
    sides = {one: _values(one, comparison) for one in comparison.signals}
    reasons = {one: _unmeasurable(*pair) for one, pair in sides.items()}
    signals = [one for one, reason in reasons.items() if reason is None]
    found: list[Shift | Unmeasured] = [
        Unmeasured(one.name, reason) for one, reason in reasons.items() if reason
    ]
    part = level / max(len(signals), 1)
    for signal in signals:
        old, new = sides[signal]
        if not can_tell(old.blocks, new.blocks, part):
            said = f"{new.blocks} blocks of time beside {old.blocks}: too few at {part:.1g}"
            found.append(Unmeasured(signal.name, said))
            continue
        smallest = least.get(signal.name, signal.least)
        found.append(_measured(signal, (old, new), part, smallest, comparison.seed))
    return found


@dataclass(frozen=True, slots=True)
class _Side:
    """A signal's rows of one side: the values (a column, or probability and label), the blocks."""

    values: Array
    block: Array

    @property
    def blocks(self) -> int:
        return len(np.unique(self.block))


def _values(signal: Signal, comparison: Comparison) -> tuple[_Side, _Side]:
    frames = comparison.reference, comparison.window
    if signal.kind is Kind.CONCEPT:
        sides = [one[one[LABEL].notna() & one[PROBABILITY].notna()] for one in frames]
        old, new = (
            _Side(one[[PROBABILITY, LABEL]].to_numpy(dtype=float), one[BLOCK].to_numpy())
            for one in sides
        )
        return old, new
    there = [one[one[PROBABILITY].notna() & one[RECENT]] for one in frames]
    if signal.kind is Kind.SHARE:
        old, new = (
            _Side(one[signal.column].isna().to_numpy(), one[BLOCK].to_numpy()) for one in there
        )
        if not old.values.any() and not new.values.any():
            nothing = _Side(np.empty(0), np.empty(0))
            return nothing, nothing
        return old, new
    kept = [one[one[signal.column].notna()] for one in there]
    kind = object if signal.kind is Kind.LABEL else float
    old, new = (_Side(one[signal.column].to_numpy(kind), one[BLOCK].to_numpy()) for one in kept)
    return old, new


def _unmeasurable(old: _Side, new: _Side) -> str | None:
    """Why a signal cannot be measured; empty where neither side has it; None if it can."""
    if max(len(old.values), len(new.values)) < LEAST_VALUES:
        return ""
    if min(len(old.values), len(new.values)) < LEAST_VALUES:
        said = f"{len(new.values)} values beside {len(old.values)} of the reference"
        return f"{said}, needs {LEAST_VALUES}"
    return None


def _measured(
    signal: Signal, sides: tuple[_Side, _Side], level: float, least: float, seed: int
) -> Shift:
    measure, contents, detail = _contents(signal, sides)
    whole = [summed(side.block, rows) for side, rows in zip(sides, contents, strict=True)]
    kept = evened([side.block for side in sides], seed)
    old, new = (
        summed(side.block[chosen], rows[chosen])
        for side, rows, chosen in zip(sides, contents, kept, strict=True)
    )
    found = compare(measure, old, new, level, seed, whole)
    return Shift(
        signal=signal.name,
        score=found.score,
        limit=max(found.limit, least),
        chance=found.chance,
        baseline=found.baseline,
        candidate=found.candidate,
        low=found.low,
        high=found.high,
        reference_rows=len(sides[0].values),
        window_rows=len(sides[1].values),
        detail=detail,
        drawn=_drawn(signal, sides),
    )


def _contents(signal: Signal, sides: tuple[_Side, _Side]) -> tuple[Measure, list[Array], str]:
    """The measure, each side's rows as what it adds up, and what there is to say."""
    values = [side.values for side in sides]
    if signal.kind is Kind.SHARE:
        return measures.SHARE, [measures.share_contents(one) for one in values], ""
    if signal.kind is Kind.NUMBER:
        edges = measures.grid_of(np.concatenate(values))
        return measures.NUMBER, [measures.number_contents(one, edges) for one in values], ""
    if signal.kind is Kind.LABEL:
        return _label_contents(values)
    if signal.name == "concept_brier":
        return measures.BRIER, [measures.brier_contents(*one.T) for one in values], ""
    if signal.name == "concept_calibration":
        return measures.CALIBRATION, [measures.calibration_contents(*one.T) for one in values], ""
    edges = measures.grid_of(np.concatenate([one[:, 0] for one in values]))
    return (
        measures.AREA,
        [measures.area_contents(one[:, 0], one[:, 1], edges) for one in values],
        "",
    )


def _label_contents(values: Sequence[Array]) -> tuple[Measure, list[Array], str]:
    names, counts = np.unique(np.concatenate(values).astype(str), return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")[:MOST_LABELS]]
    told = [np.where(np.isin(one.astype(str), kept), one.astype(str), OTHERS) for one in values]
    labels = [*kept, *([OTHERS] if len(names) > len(kept) else [])]
    shares = [np.array([(one == label).mean() for label in labels]) for one in told]
    place = int(np.argmax(shares[1] - shares[0]))
    contents = [measures.label_contents(one, labels) for one in told]
    return measures.label_measure(place), contents, str(labels[place])


def _drawn(signal: Signal, sides: tuple[_Side, _Side]) -> tuple[Array, Array] | None:
    """What a report draws that is no column: how far each outcome is from its probability, and
    what is missing."""
    if signal.kind is Kind.CONCEPT:
        old, new = (side.values[:, 1] - side.values[:, 0] for side in sides)
    elif signal.kind is Kind.SHARE:
        old, new = (side.values.astype(float) for side in sides)
    else:
        return None
    return old, new


def _has_text(column: str, *frames: Frame) -> bool:
    return any(
        column in frame and frame[column].map(lambda one: isinstance(one, str)).any()
        for frame in frames
    )
