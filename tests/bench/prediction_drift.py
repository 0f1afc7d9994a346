"""How often a month of looks at predictions cries wolf, and how soon a drift is found:
`python -m tests.bench.prediction_drift [--months N] [--trials N]`.

Days of predictions are drawn as the tests draw them (`tests.evals.prediction_log`): weather that
each day has for itself, three features, 100 predictions a day and a reference of 28 days of 150.
They are looked at by the code that looks at the log, at the shipped level: 0.05 false alarms a
month, a look a day, windows of seven days. Prints tables in Markdown.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas

from evals.comparison import Comparison
from evals.prediction_signals import measure_predictions, signals_of
from evals.prediction_window import FEATURE, prepared
from evals.shifts import Shift
from evals.spending import come_in
from tests.evals.prediction_log import Made, world

ALARMS = 0.05
START = datetime(2026, 4, 1, tzinfo=UTC)
BLOCKS, REFERENCE_DAYS, REFERENCE_ROWS, ROWS, MONTH = 7, 28, 150, 100, 30
DAY_MICROS = 86_400_000_000
CHANGES = {
    "temp: one standard deviation warmer": Made(warmer=1),
    "temp: two standard deviations warmer": Made(warmer=2),
    "carrier: one of three has 60 % instead of 33 %": Made(united=0.6),
    "missing: 20 % of temp": Made(missing=0.2),
    "concept: what made late makes punctual": Made(flipped=True),
}
Day = Any


def day(random: Any, number: int, rows: int, made: Made) -> Day:
    """One day as rows of a window."""
    drawn = world(random, rows, made)
    columns = {FEATURE + name: values for name, values in drawn["features"].items()}
    rest = {"probability": drawn["probability"], "label": drawn["outcome"].astype(float)}
    return pandas.DataFrame({**columns, **rest, "moment": number * DAY_MICROS})


@dataclass
class Month:
    """Looks at one reference, day after day, with the budget of a month."""

    random: Any
    used: float = 0.0

    def __post_init__(self) -> None:
        days = [day(self.random, n, REFERENCE_ROWS, Made()) for n in range(REFERENCE_DAYS)]
        self.reference = prepared(pandas.concat(days, ignore_index=True), 86_400)

    def look(self, days: list[Day], moment: datetime) -> list[str]:
        """The signals that drifted."""
        window = prepared(pandas.concat(days[-BLOCKS:], ignore_index=True), 86_400)
        signals = signals_of(self.reference, window)
        seed = int(self.random.integers(2**32))
        comparison = Comparison(self.reference, window, {}, seed=seed, signals=signals)
        level = max(come_in(ALARMS, moment) - self.used, 0.0)
        measured = measure_predictions(comparison, level, {})
        found = [one for one in measured if isinstance(one, Shift)]
        self.used += level if found else 0.0
        return [one.signal for one in found if one.drifted]


def cries(seed: int, looks_a_day: int = 1, least: int = BLOCKS) -> list[str]:
    """The signals that cried in a month without drift."""
    month, days, found = Month(np.random.default_rng(seed)), [], []
    for number in range(MONTH):
        days.append(day(month.random, 1_000 + number, ROWS, Made()))
        for index in range(looks_a_day if number + 1 >= least else 0):
            moment = START + timedelta(days=number + (index + 1) / (looks_a_day + 1))
            found += month.look(days, moment)
    return found


def days_until(seed: int, made: Made, most: int = 20) -> tuple[int | None, list[str]]:
    """Days from a change in the middle of a month until it is found; and by which signals."""
    month = Month(np.random.default_rng(seed))
    days = [day(month.random, 1_000 + number, ROWS, Made()) for number in range(BLOCKS)]
    moment = START + timedelta(days=15)
    month.used = come_in(ALARMS, moment - timedelta(days=1))  # of daily looks until then
    for number in range(most):
        days.append(day(month.random, 2_000 + number, ROWS, made))
        found = month.look(days, moment + timedelta(days=min(number, 14)))
        if found:
            return number + 1, found
    return None, []


def _timed(name: str, work: Callable[[], None]) -> None:
    started = time.process_time()
    work()
    print(f"\n({name}: {time.process_time() - started:.0f} s of one processor)\n")


def main() -> None:
    """Read the command line, and simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, default=400)
    parser.add_argument("--trials", type=int, default=40)
    given = parser.parse_args()

    def months() -> None:
        found = [cries(seed) for seed in range(given.months)]
        crying = [one for one in found if one]
        print(f"{given.months} months without drift: {len(crying)} with an alarm")
        print(f"({len(crying) / given.months:.1%}; budget {ALARMS:.0%})")
        print(Counter(name for one in crying for name in one).most_common())

    def powers() -> None:
        print("| change | found | days: median | p95 | by |\n| --- | ---: | ---: | ---: | --- |")
        for name, made in CHANGES.items():
            trials = [days_until(10_000 + seed, made) for seed in range(given.trials)]
            taken = [days for days, _ in trials if days is not None]
            by = Counter(signal for _, signals in trials for signal in signals).most_common(3)
            said = ", ".join(f"{signal} {count / given.trials:.0%}" for signal, count in by)
            middle, late = np.quantile(taken, [0.5, 0.95], method="higher")
            share = f"{len(taken)} of {given.trials}"
            print(f"| {name} | {share} | {middle} | {late} | {said} |")

    _timed("false alarms", months)
    _timed("time to detection", powers)


if __name__ == "__main__":
    main()
