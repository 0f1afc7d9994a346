"""How well a score tells two kinds apart (area under the ROC curve), and how well a judge agrees
with labels (Cohen's kappa), each with its interval.

The area's interval is a bootstrap over groups: answers about one passage hang together, so whole
groups are drawn. Kappa's is its large-sample standard error (Fleiss, Cohen and Everitt,
Psychological Bulletin 72, 323-327, 1969). That is 0 where the agreement is perfect, so the lower
bound is never above what Wilson's interval leaves of the share of agreement.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from evals.compare import CONFIDENCE, wilson

DRAWS = 2_000
SEED = 7


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its interval, and the number of units that it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def area(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The chance that a positive's score is above a negative's; equal ones count half.

    Raises: ValueError where one side is empty.
    """
    if not positive or not negative:
        raise ValueError("both kinds are wanted, at least one of each")
    ordered = sorted([(score, True) for score in positive] + [(score, False) for score in negative])
    below, won, start = 0, 0.0, 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        ups = sum(label for _, label in ordered[start:end])
        downs = end - start - ups
        won += ups * (below + downs / 2)
        below, start = below + downs, end
    return won / (len(positive) * len(negative))


def area_estimate(
    scores: Sequence[float], labels: Sequence[bool], groups: Sequence[str]
) -> Estimate:
    """The area and its 95 % interval: percentiles over draws of whole groups, always the same.

    Raises: ValueError where one kind is missing.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)

    def area_of(places: Sequence[int]) -> float:
        positive = [scores[place] for place in places if labels[place]]
        return area(positive, [scores[place] for place in places if not labels[place]])

    value = area_of(range(len(scores)))
    rng, names = random.Random(SEED), sorted(members)
    drawn: list[float] = []
    while len(drawn) < DRAWS:
        places = [place for name in rng.choices(names, k=len(names)) for place in members[name]]
        kinds = {labels[place] for place in places}
        if len(kinds) == 2:
            drawn.append(area_of(places))
    drawn.sort()
    cut = round((1 - CONFIDENCE) / 2 * DRAWS)
    return Estimate(value, drawn[cut], drawn[-1 - cut], len(scores))


def kappa(judged: Sequence[bool], labels: Sequence[bool]) -> Estimate:
    """Cohen's kappa of a judge and labels, with its 95 % interval.

    Raises: ValueError for different lengths, or labels of one kind only.
    """
    n = len(labels)
    if n != len(judged):
        raise ValueError(f"{len(judged)} judgements of {n} labelled answers")
    if len(set(labels)) < 2:
        raise ValueError("labels of both kinds are wanted")
    pairs = [(int(one), int(other)) for one, other in zip(judged, labels, strict=True)]
    cell = {(one, other): pairs.count((one, other)) / n for one in (0, 1) for other in (0, 1)}
    row = {one: cell[one, 0] + cell[one, 1] for one in (0, 1)}
    column = {one: cell[0, one] + cell[1, one] for one in (0, 1)}
    observed = cell[0, 0] + cell[1, 1]
    chance = row[0] * column[0] + row[1] * column[1]
    value = (observed - chance) / (1 - chance)
    agreeing = sum(
        cell[one, one] * (1 - (row[one] + column[one]) * (1 - value)) ** 2 for one in (0, 1)
    )
    differing = (1 - value) ** 2 * sum(
        cell[one, 1 - one] * (column[one] + row[1 - one]) ** 2 for one in (0, 1)
    )
    rest = (value - chance * (1 - value)) ** 2
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    half = z * sqrt(max(agreeing + differing - rest, 0.0) / n) / (1 - chance)
    surely, _ = wilson(round(observed * n), n, z)
    low = min(value - half, (surely - chance) / (1 - chance))
    return Estimate(value, max(low, -1.0), min(value + half, 1.0), n)
