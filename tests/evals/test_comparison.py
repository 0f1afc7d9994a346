"""Who counts as how many: false alarms stay within the level whoever asks, or nothing is said."""

import numpy as np
import pandas
import pytest
from scipy import stats  # type: ignore[import-untyped]

from evals.comparison import Comparison, Unmeasured, coded, measure, too_few_users
from evals.shifts import LEAST_USERS, Shift
from evals.signals import SIGNALS

ROWS, LEVEL, TRIALS = (1000, 400), 0.02, 300
FORGETFUL = 0.15  # of rows are a program's that names nobody


def side(random, users, alike=0.0, prefix=""):
    """Rows with one number, of which rows of one user share the part `alike` of the variance.

    `users`: who asked each; below 0, nobody who is named, all of the same program.
    """
    _, codes = np.unique(users, return_inverse=True)
    own = random.normal(size=codes.max() + 1)[codes]
    ids = [f"{prefix}{place:012d}" for place in range(len(users))]
    units = [
        f"{prefix}u{user:011d}" if user >= 0 else one for user, one in zip(users, ids, strict=True)
    ]
    values = np.sqrt(alike) * own + np.sqrt(1 - alike) * random.normal(size=len(ids))
    return pandas.DataFrame(
        {
            **{signal.column: np.full(len(users), np.nan) for signal in SIGNALS},
            "request_id": ids,
            "unit": units,
            "caller": "the same program",
            "output_tokens": values,
        }
    )


def asked(kind, random, rows):
    """Users of so many rows, and how alike their rows are."""
    if kind == "nobody named":
        return np.full(rows, -1), 0.0
    if kind == "a forgetful program":
        return np.where(np.arange(rows) < rows * FORGETFUL, -1, np.arange(rows)), 0.8
    users = {"fifty users": 50, "two hundred users": 200}[kind]
    return random.integers(0, users, size=rows), 0.5


def found(kind, random):
    """What is found of two sides that are drawn from the same."""
    sides = []
    for rows, prefix in zip(ROWS, "rw", strict=True):
        users, alike = asked(kind, random, rows)
        sides.append(side(random, users, alike, prefix))
    (one,) = measure(Comparison(*coded(*sides), texts={}), LEVEL, {"output_tokens": 0.0})
    return one


@pytest.mark.parametrize(
    "kind", ["nobody named", "a forgetful program", "fifty users", "two hundred users"]
)
def test_false_alarms_stay_within_the_level(kind):
    random = np.random.default_rng(11)
    drifted = 0
    for _ in range(TRIALS):
        one = found(kind, random)
        assert isinstance(one, Shift), one
        drifted += one.drifted
    assert drifted <= stats.binom.isf(1e-3, TRIALS, LEVEL), drifted


def test_requests_of_a_forgetful_program_would_cry_wolf_if_each_counted(monkeypatch):
    """What the rule is for, beside users who are named."""
    monkeypatch.setattr("evals.comparison._codes", lambda side, _: np.arange(len(side)))
    random = np.random.default_rng(11)
    drifted = sum(found("a forgetful program", random).drifted for _ in range(TRIALS))
    assert drifted > 3 * TRIALS * LEVEL


def test_few_users_are_not_compared_however_many_rows_they_have():
    random = np.random.default_rng(11)
    few = random.integers(0, LEAST_USERS - 1, size=400)
    sides = coded(side(random, np.arange(1000)), side(random, few, 0.5))
    (one,) = measure(Comparison(*sides, texts={}), LEVEL, {})
    assert isinstance(one, Unmeasured)
    assert one.reason.startswith("too few users: ")


def test_too_few_users_are_said_with_how_many_they_are():
    many = np.arange(100)
    assert too_few_users(many, many) is None
    assert too_few_users(many, np.repeat(np.arange(5), 20)) == "too few users: 5, needs 30"
    heavy = np.concatenate([np.zeros(100), many])
    assert too_few_users(heavy, many) == (
        "too few users: 4 (100, of whom some ask far more than others), needs 30"
    )
