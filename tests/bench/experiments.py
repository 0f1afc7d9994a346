"""`python -m tests.bench.experiments`: what experiments decide, and when, by simulation.

Users come in turn into both arms, and after each of them the evidence is looked at. For values of
0 and 1 the evidence against equal arms has a closed form, which makes ten thousand experiments a
matter of a minute. It is `evals.confidence_sequence` itself, without its grid: a test holds that
the interval there never leaves out zero before the closed form does, and where a difference is
simulated the interval has the last word.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from evals.compare import wilson
from evals.confidence_sequence import Sample, _alternatives, difference_interval
from evals.sample_ratio import ALPHA as MISMATCH_ALPHA
from evals.sample_ratio import is_mismatch
from tests.bench.progress import Progress

ALPHA, SEED = 0.05, 20
USERS = 2_000  # of an arm
RATES = (0.5, 0.6)
SHARES = (0.5, 0.48)
MISMATCH_UNITS = 10_000
LIKES = (1.0, 1.0)  # beta distribution of how much each user likes answers: very different users
REQUESTS = 5  # of each such user
Z = NormalDist().inv_cdf(1 - ALPHA / 2)

Array = Any


def wealth_table(most: int) -> Array:
    """`table[n, ones]`: what an arm's bets are worth (logarithm), but for the claimed mean."""
    alternatives = _alternatives()
    table = np.full((most + 1, most + 1), np.nan)
    for n in range(most + 1):
        ones = np.arange(n + 1)[:, None]
        worth = ones * np.log(alternatives) + (n - ones) * np.log(1 - alternatives)
        highest = worth.max(axis=1)
        table[n, : n + 1] = highest + np.log(np.exp(worth - highest[:, None]).mean(axis=1))
    return table


def evidence(table: Array, first: Array, second: Array) -> Array:
    """Logarithm of the evidence against equal arms after each pair of users.

    `first`, `second`: how many ones there were in each arm so far. The claimed mean that both arms
    together refute least is their pooled one.
    """
    n = np.arange(1, first.shape[-1] + 1)
    ones, both = first + second, 2 * n
    pooled = _entropy(ones, both) + _entropy(both - ones, both)
    return table[n, first] + table[n, second] - pooled


def first_at(evidences: Array, alpha: float) -> int | None:
    """The number of the first look that decides; None if none does."""
    found = np.flatnonzero(evidences >= math.log(1 / alpha))
    return int(found[0]) + 1 if found.size else None


def decided_at(table: Array, arms: Array) -> int | None:
    """Users of an arm at which the interval itself leaves out zero."""
    ones = arms.cumsum(axis=1)
    first = first_at(evidence(table, ones[0], ones[1]), ALPHA)
    if first is None:
        return None
    for users in range(first, arms.shape[1] + 1):
        interval = difference_interval(
            Sample.of(arms[0, :users]), Sample.of(arms[1, :users]), ALPHA
        )
        if interval.low > 0 or interval.high < 0:
            return users
    return None


def fixed_size(rates: tuple[float, float], power: float) -> float:
    """Users an arm of the textbook test of two proportions, looked at once, with that power."""
    variance = sum(rate * (1 - rate) for rate in rates)
    quantile = Z + NormalDist().inv_cdf(power)
    return quantile**2 * variance / (rates[1] - rates[0]) ** 2


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, with Wilson's 95 % interval."""

    hits: int
    runs: int

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.runs

    def __str__(self) -> str:
        low, high = wilson(self.hits, self.runs, NormalDist().inv_cdf(0.975))
        return f"{100 * self.value:.2f} % [{100 * low:.2f}, {100 * high:.2f}] of {self.runs:,}"


@dataclass(frozen=True, slots=True)
class Line:
    """A claim, what was found, and whether it holds."""

    claim: str
    found: str
    holds: bool


def equal_arms(table: Array, runs: int, generator: Any) -> Line:
    """A/A under continuous peeking."""
    hits = 0
    for _ in range(runs):
        ones = (generator.random((2, USERS)) < RATES[0]).cumsum(axis=1)
        hits += first_at(evidence(table, ones[0], ones[1]), ALPHA) is not None
    share = Share(hits, runs)
    claim = (
        f"A/A, both {RATES[0]}, a look after each of {USERS:,} users an arm: told apart ≤ {ALPHA}"
    )
    return Line(claim, str(share), share.value <= ALPHA)


def unlike_users(table: Array, runs: int, generator: Any) -> tuple[Line, Line]:
    """A/A where each user sends several requests and judges them alike: by user, and by request."""
    by_user, by_request = 0, 0
    for _ in range(runs):
        likes = generator.beta(*LIKES, size=(2, USERS // REQUESTS))
        said = generator.random((2, USERS // REQUESTS, REQUESTS)) < likes[:, :, None]
        firsts = said[:, :, 0].cumsum(axis=1)
        by_user += first_at(evidence(table, firsts[0], firsts[1]), ALPHA) is not None
        every = said.reshape(2, -1).cumsum(axis=1)
        by_request += first_at(evidence(table, every[0], every[1]), ALPHA) is not None
    users, requests = Share(by_user, runs), Share(by_request, runs)
    claim = f"A/A, {REQUESTS} requests of each user that hang together, one value a user: ≤ {ALPHA}"
    wrong = "the same, had every request been counted: above that, which is why users are counted"
    return (
        Line(claim, str(users), users.value <= ALPHA),
        Line(wrong, str(requests), requests.value > ALPHA),
    )


def different_arms(table: Array, runs: int, generator: Any) -> tuple[Line, Line, Line]:
    """A difference: how often it is found, how soon, and how often it is taken for its opposite."""
    needed, wrong = [], 0
    for _ in range(runs):
        arms = (generator.random((2, USERS)) < np.array(RATES)[:, None]).astype(int)
        users = decided_at(table, arms)
        needed.append(users)
        if users is not None:
            wrong += int(arms[1, :users].sum() < arms[0, :users].sum())
    decided = Share(sum(one is not None for one in needed), runs)
    mean = sum(one or USERS for one in needed) / runs
    known = sorted(one for one in needed if one is not None)
    fixed = fixed_size(RATES, decided.value)
    what = f"{RATES[0]} against {RATES[1]}"
    spread = f"median {known[len(known) // 2]}, p95 {known[int(0.95 * len(known))]}"
    return (
        Line(
            f"{what}: decided by {USERS:,} users an arm ≥ 90 %", str(decided), decided.value >= 0.9
        ),
        Line(
            "mean users an arm until then ≤ 1.5 times a fixed test of that power, looked at once",
            f"{mean:.0f} ({spread}) = {mean / fixed:.2f} of {fixed:.0f}",
            mean <= 1.5 * fixed,
        ),
        Line(
            f"{what}: decided for the worse arm ≤ {ALPHA}",
            str(Share(wrong, runs)),
            wrong / runs <= ALPHA,
        ),
    )


def mismatches(runs: int, generator: Any) -> tuple[Line, Line]:
    """The alarm on the arms' sizes, looked at after each ten units: as planned, and not."""
    lines = []
    for share in SHARES:
        found = [_mismatch_at(share, generator) for _ in range(runs)]
        hits = sorted(one for one in found if one is not None)
        result = Share(len(hits), runs)
        if share == SHARES[0]:
            claim = (
                f"arms' sizes as planned: alarm within {MISMATCH_UNITS:,} units ≤ {MISMATCH_ALPHA}"
            )
            lines.append(Line(claim, str(result), result.value <= MISMATCH_ALPHA))
        else:
            claim = f"{share:.0%} instead of {SHARES[0]:.0%}: alarm within {MISMATCH_UNITS:,} units"
            halfway = f"; half of all by {hits[runs // 2]:,}" if len(hits) > runs // 2 else ""
            lines.append(Line(f"{claim} ≥ 50 %", f"{result}{halfway}", result.value >= 0.5))
    return lines[0], lines[1]


def _mismatch_at(share: float, generator: Any) -> int | None:
    looks = MISMATCH_UNITS // 10
    counts = generator.binomial(10, share, size=looks).cumsum()
    for look, units in enumerate(counts, 1):
        if is_mismatch(int(units), 10 * look, SHARES[0]):
            return 10 * look
    return None


def _entropy(part: Array, whole: Array) -> Array:
    """`part` times the logarithm of its share; 0 for none."""
    share = np.maximum(part, 1) / whole
    return np.where(part > 0, part * np.log(share), 0.0)


def study(runs: int, say: Progress) -> list[Line]:
    """All claims, `runs` experiments for each that is about rare events, fewer for the others."""
    generator = np.random.default_rng(SEED)
    say("the table")
    table = wealth_table(USERS)
    say(f"A/A, {runs} experiments")
    lines = [equal_arms(table, runs, generator)]
    say(f"A/A with several requests of each user, {runs} experiments")
    lines += unlike_users(table, runs, generator)
    fewer = max(runs // 10, 1)
    say(f"{RATES[0]} against {RATES[1]}, {fewer} experiments")
    lines += different_arms(table, fewer, generator)
    say(f"arms' sizes, twice {fewer} experiments")
    lines += mismatches(fewer, generator)
    return lines


def page(lines: Iterable[Line], runs: int, seconds: float) -> str:
    """The study as Markdown."""
    rows = "\n".join(
        f"| {one.claim} | {one.found} | {'yes' if one.holds else 'NO'} |" for one in lines
    )
    return f"""# What experiments decide, and when

Written by `python -m tests.bench.experiments --runs {runs} --out docs/experiments-study.md`
(seed {SEED}, {seconds:.0f} s). Users come in turn into both arms and are looked at after each pair;
shares have Wilson's 95 % interval. A fixed test's size is set before, and it is looked at once.

| claim | found | holds |
| --- | --- | --- |
{rows}
"""


def main() -> int:
    """Simulate and write; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.experiments", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="the page; printed if not given")
    arguments = parser.parse_args()
    started = time.monotonic()
    lines = study(arguments.runs, Progress(sys.stderr))
    text = page(lines, arguments.runs, time.monotonic() - started)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text)
    return 0 if all(one.holds for one in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
