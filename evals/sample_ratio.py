"""Sample ratio mismatch: whether more units came into an arm than its weight explains.

Always valid, like the intervals: it may be looked at after each unit, and the chance that sizes
which are as planned ever reach evidence of 1/alpha is at most alpha. The evidence is a Bayes factor
of beta distributions around the weight against the weight itself (for two arms the multinomial test
of Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022). One of
them is wide, so that gross mistakes show at once, one so narrow that small ones show at all.
"""

import math
from collections.abc import Sequence

ALPHA = 0.01
WIDTHS = (1.0, 625.0)  # as units of evidence: 625 is a deviation of two points around a half


def log_evidence(units: int, of: int, weight: float) -> float:
    """Logarithm of the evidence that `units` of `of` are not what `weight` gives an arm."""
    rest = of - units
    claimed = units * math.log(weight) + rest * math.log(1 - weight)
    each = [
        _log_beta(width * weight + units, width * (1 - weight) + rest)
        - _log_beta(width * weight, width * (1 - weight))
        - claimed
        for width in WIDTHS
    ]
    return _log_mean(each)


def is_mismatch(units: int, of: int, weight: float, alpha: float = ALPHA) -> bool:
    """Whether the evidence is enough."""
    return log_evidence(units, of, weight) >= math.log(1 / alpha)


def _log_beta(one: float, other: float) -> float:
    return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)


def _log_mean(logarithms: Sequence[float]) -> float:
    highest = max(logarithms)
    return highest + math.log(sum(math.exp(one - highest) for one in logarithms) / len(logarithms))
