"""A window beside its reference: every signal of drift, measured.

Texts: Evidently's classifier is trained on one half of the users and judged on the other.
Embeddings: the distance of the means; and rows that are unlike the reference, told by their
distance to one half of it, and counted beside the other half. So no row is compared with what was
learnt from it or from the same user, and the tests of `evals.shifts` hold.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evals.shifts import (
    LEAST_USERS,
    Shift,
    Side,
    label_shift,
    mean_shift,
    number_shift,
    rank_shift,
    share_shift,
    users_worth,
)
from evals.signals import SIGNALS, Kind, Signal
from evals.windows import Frame

Array = Any

LEAST_VALUES = 100  # with fewer a signal says nothing
UNLIKE_SHARE = 0.05  # of rows, both sides together, that count as unlike the reference
NEIGHBOURS = 3
WIDE_AXES = 200  # of the reference's embeddings that are kept
AXES = 50  # of those, that means are compared along
USERS_AN_AXIS = 4  # on the side with fewer, at least
CODE = "code"  # column of a side: who asked, as a number


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rows of one side that texts or embeddings are compared on."""

    texts: Array
    units: Array
    vectors: Array | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared.

    Attributes:
        reference, window: all rows of both sides.
        texts, vectors: by column, the sampled rows of both sides; vectors are missing where they
            could not be had.
        seed: of the division into halves.
        signals: the respects in which both sides are compared.
    """

    reference: Frame
    window: Frame
    texts: Mapping[str, tuple[Sampled, Sampled]]
    vectors: Mapping[str, tuple[Sampled, Sampled]] = field(default_factory=dict)
    seed: int = 0
    signals: Sequence[Signal] = SIGNALS

    @property
    def by_name(self) -> Mapping[str, Signal]:
        """The signals by their names."""
        return {one.name: one for one in self.signals}


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A signal that could not be measured, and why."""

    signal: str
    reason: str


def sample(frame: Frame, column: str, most: int, seed: int) -> Sampled:
    """At most `most` rows with a text, the same ones for the same seed."""
    rows = frame[frame[column].notna()]
    if len(rows) > most:
        kept = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
        rows = rows.iloc[kept]
    return Sampled(rows[column].to_numpy(dtype=object), rows[CODE].to_numpy())


def coded(reference: Frame, window: Frame) -> tuple[Frame, Frame]:
    """Both sides with the same columns, and one of numbers for who asked.

    Where nobody at all is named, on neither side, each request counts as somebody: that is right
    if requests have nothing to do with each other, and nothing better is known. Where somebody is,
    requests that name nobody are the key's: a program that forgets to say whom it asks for is not
    as many people as it asks questions.
    """
    columns = window.columns.union(reference.columns, sort=False)  # an old reference has fewer
    sides = [side.reindex(columns=columns) for side in (reference, window)]
    named = any((side["unit"] != side["request_id"]).any() for side in sides)
    old, new = (side.assign(**{CODE: _codes(side, named)}) for side in sides)
    return old, new


def _codes(side: Frame, named: bool) -> list[int]:
    asked = side["unit"]
    if named and "caller" in side:
        asked = asked.where(asked != side["request_id"], side["caller"].fillna(""))
    return [_number_of(one) for one in asked]


def too_few_users(*units: Array) -> str | None:
    """Why nothing can be told of sides with these users, or None."""
    worth, side = min((users_worth(one), len(np.unique(one))) for one in units)
    if worth >= LEAST_USERS:
        return None
    unequal = f" ({side}, of whom some ask far more than others)" if side > worth + 1 else ""
    return f"too few users: {worth:.0f}{unequal}, needs {LEAST_USERS}"


def _number_of(identifier: str) -> int:
    return int.from_bytes(identifier[-12:].encode()) % (2**61 - 1)


def measure(
    comparison: Comparison, level: float, least: Mapping[str, float]
) -> list[Shift | Unmeasured]:
    """Every signal of which one side has values enough: measured at its part of `level`, or why it
    was not; one that errs takes no other along. `least` has other smallest changes by the signal's
    name."""
    reasons = {one: _unmeasurable(one, comparison) for one in comparison.signals}
    signals = [one for one, reason in reasons.items() if reason is None]
    found: list[Shift | Unmeasured] = [
        Unmeasured(one.name, reason) for one, reason in reasons.items() if reason
    ]
    for signal in signals:
        smallest = least.get(signal.name, signal.least)
        try:
            found.append(_MEASURES[signal.kind](signal, comparison, level / len(signals), smallest))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            found.append(Unmeasured(signal.name, f"{type(error).__name__}: {error}"))
    return found


def halves(units: Array, seed: int) -> Array:
    """Which rows are in the first half: all rows of a user, or none."""
    distinct, places = np.unique(units, return_inverse=True)
    first = np.random.default_rng(seed).permutation(len(distinct)) < len(distinct) // 2
    return first[places]


def _unmeasurable(signal: Signal, comparison: Comparison) -> str | None:
    """Why a signal cannot be measured; empty where neither side has it; None if it can."""
    old, new = _units(signal, comparison)
    if max(len(old), len(new)) < LEAST_VALUES:
        return ""
    if min(len(old), len(new)) < LEAST_VALUES:
        return f"{len(new)} values beside {len(old)} of the reference, needs {LEAST_VALUES}"
    return too_few_users(old, new)


def _units(signal: Signal, comparison: Comparison) -> tuple[Array, Array]:
    """Who asked what a signal has a value of, on both sides."""
    if signal.kind in (Kind.VECTORS, Kind.UNLIKE):
        pair = comparison.vectors.get(signal.column)
        return (pair[0].units, pair[1].units) if pair else (np.empty(0), np.empty(0))
    old, new = (
        side[CODE][side[signal.column].notna()].to_numpy()
        for side in (comparison.reference, comparison.window)
    )
    return old, new


def _text(signal: Signal, comparison: Comparison, level: float, least: float) -> Shift:
    """Evidently's domain classifier, with the users divided between training and test."""
    sides = comparison.texts[signal.column]
    texts = np.concatenate([side.texts for side in sides])
    labels, units, trained = _divided(sides, comparison.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently.legacy.utils.data_drift_utils import roc_auc_domain_classifier

        _, scores, _ = roc_auc_domain_classifier(
            texts[trained], texts[~trained], labels[trained], labels[~trained]
        )
    return _ranked(signal, scores, (labels[~trained], units[~trained]), level, least)


def _vectors(signal: Signal, comparison: Comparison, level: float, least: float) -> Shift:
    """The distance of the means, along the axes in which both sides together vary most."""
    reference, window = comparison.vectors[signal.column]
    assert reference.vectors is not None
    assert window.vectors is not None
    middle, wide = foremost(reference.vectors, WIDE_AXES)
    sides = [(one - middle) @ wide for one in (reference.vectors, window.vectors)]
    return means_apart(signal, (sides[0], sides[1]), (reference.units, window.units), level, least)


def means_apart(
    signal: Signal, sides: tuple[Array, Array], units: tuple[Array, Array], level: float,
    least: float,
) -> Shift:  # fmt: skip
    """The same, of vectors that lie along the reference's foremost axes already."""
    users = min(len(np.unique(one)) for one in units)
    _, axes = foremost(np.concatenate(sides), min(AXES, max(users // USERS_AN_AXIS, 1)))
    return mean_shift(signal.name, sides[0] @ axes, sides[1] @ axes, units, level, least)


def foremost(vectors: Array, most: int) -> tuple[Array, Array]:
    """The mean of `vectors`, and the axes in which they vary most, `most` of them at most."""
    middle = vectors.mean(axis=0)
    centred = (vectors - middle).astype(float)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
    varied = int((variances > variances[-1] * 1e-9).sum())
    return middle, axes[:, ::-1][:, : max(min(most, varied), 1)]


def _unlike(signal: Signal, comparison: Comparison, level: float, least: float) -> Shift:
    """The share of rows that are furthest from one half of the reference; the other half of it is
    what the window is compared with."""
    reference, window = comparison.vectors[signal.column]
    known = halves(reference.units, comparison.seed)
    assert reference.vectors is not None
    others = reference.vectors[~known], window.vectors
    far = [distances(reference.vectors[known], one) for one in others]
    limit = np.quantile(np.concatenate(far), 1 - UNLIKE_SHARE)
    sides = [
        Side((one > limit).astype(float), units)
        for one, units in zip(far, (reference.units[~known], window.units), strict=True)
    ]
    shift = share_shift(signal.name, sides[0], sides[1], level, least)
    return replace(shift, drawn=(far[0], far[1]))


def distances(known: Array, others: Array) -> Array:
    """How far each of `others` is from its nearest neighbours among `known`, 0 to 2 (cosine)."""
    near = _unit_length(others) @ _unit_length(known).T
    nearest = np.partition(near, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
    return 1 - nearest.mean(axis=1)


def _number(signal: Signal, comparison: Comparison, level: float, least: float) -> Shift:
    reference, window = _sides(signal, comparison)
    return number_shift(signal.name, reference, window, level, least)


def _share(signal: Signal, comparison: Comparison, level: float, least: float) -> Shift:
    reference, window = _sides(signal, comparison)
    return share_shift(signal.name, reference, window, level, least)


def _label(signal: Signal, comparison: Comparison, level: float, least: float) -> Shift:
    rows = [side[side[signal.column].notna()] for side in (comparison.reference, comparison.window)]
    labels = [one[signal.column].to_numpy(dtype=object) for one in rows]
    units = rows[0][CODE].to_numpy(), rows[1][CODE].to_numpy()
    return label_shift(signal.name, labels[0], labels[1], units, level, least)


_MEASURES: Mapping[Kind, Callable[[Signal, Comparison, float, float], Shift]] = {
    Kind.TEXT: _text,
    Kind.VECTORS: _vectors,
    Kind.UNLIKE: _unlike,
    Kind.NUMBER: _number,
    Kind.SHARE: _share,
    Kind.LABEL: _label,
}


def _sides(signal: Signal, comparison: Comparison) -> tuple[Side, Side]:
    reference, window = (
        Side(side[signal.column].to_numpy(dtype=float), side[CODE].to_numpy()).known()
        for side in (comparison.reference, comparison.window)
    )
    return reference, window


def _divided(sides: tuple[Sampled, Sampled], seed: int) -> tuple[Array, Array, Array]:
    """Labels (0: reference), users, and which rows are trained on."""
    labels = np.repeat([0, 1], [len(sides[0]), len(sides[1])])
    units = np.concatenate([side.units for side in sides])
    return labels, units, halves(units, seed)


def _ranked(
    signal: Signal, scores: Array, rows: tuple[Array, Array], level: float, least: float
) -> Shift:
    labels, units = rows
    reference, window = (Side(scores[labels == one], units[labels == one]) for one in (0, 1))
    return rank_shift(signal.name, reference, window, level, least)


def _unit_length(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
