"""The account as small tables, each drawn by the terminal and by the Markdown report alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from deploy.demo.account import Account, Trial
from deploy.demo.figures import NONE, figure, percent, seconds, share, signed
from deploy.demo.plot import AXIS, interval_bar
from deploy.demo.stage import Trained
from evals.records import MetricResult

BASE = "base"
SHARES = frozenset({"exact_match", "valid_json"})
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grid:
    """A table. The first `texts` columns are text, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def is_text(self, column: int) -> bool:
        """Whether a column (from 0) is text, which stands on the left."""
        return column < self.texts


def held_out(trained: Trained) -> Grid:
    """Candidate against base on the held-out items, by the gate's every metric."""
    rows = [
        (
            metric.name,
            _value(metric.baseline, metric),
            _value(metric.candidate, metric),
            _difference(metric),
            str(metric.n),
            {True: "passed", False: "failed", None: NONE}[metric.passed],
        )
        for metric in trained.verdict.metrics
    ]
    columns = ("held-out", trained.verdict.baseline, trained.adapter, "difference [95 %]", "n",
               "gate")  # fmt: skip
    return Grid("Held-out, before and after", columns, rows)


def trials(account: Account) -> Grid:
    """Every experiment, an arm a row."""
    rows = []
    for trial in account.trials:
        for arm in trial.state.arms:
            first = arm is trial.state.arms[0]
            rows.append(
                (
                    trial.name if first else "",
                    arm.name,
                    arm.adapter or BASE,
                    str(arm.users),
                    share(arm.mean),
                    "" if first else _interval_of(trial),
                    "" if first else trial.state.state.replace("_", " "),
                    "" if first else seconds(trial.decided_seconds),
                )
            )
    columns = ("experiment", "arm", "answered by", "users heard", "helpful",
               "difference [interval]", "decision", "after")  # fmt: skip
    return Grid("Experiments on live users", columns, rows, texts=3)


def timings(account: Account) -> Grid:
    """Where the time went."""
    rows = [(f"{act.number}. {act.title}", seconds(act.seconds)) for act in account.acts]
    if account.trained is not None:
        rows += [
            (f"train: {name}", seconds(took)) for name, took in account.trained.seconds.items()
        ]
    for trial in account.trials:
        rows += [
            (
                f"{trial.name}: start → candidate answers",
                seconds(trial.rollout_seconds),
            ),
            (f"{trial.name}: start → decision", seconds(trial.decided_seconds)),
            (f"{trial.name}: decision → traffic and MLflow agree", seconds(trial.settled_seconds)),
            (f"{trial.name}: decision → loser's last request", seconds(trial.stray_seconds)),
        ]
    rows.append(("everything", seconds(account.seconds)))
    return Grid("Times", ("what", "took"), rows)


def requests(account: Account) -> Grid:
    """What the users sent and said."""
    named = [("before", account.before), *((one.name, one.tally) for one in account.trials)]
    rows = []
    for name, tally in [*named, ("all", account.tally)]:
        if tally is None:
            continue
        counts = (tally.users, tally.sent, tally.failed)
        said = (tally.helpful, tally.unhelpful, tally.silent, tally.corrected)
        right = percent(tally.right, tally.answered)
        rows.append((name, *map(str, counts), right, *map(str, said)))
    columns = ("users of", "users", "requests", "failed", "right", "helpful", "not", "silent",
               "corrected")  # fmt: skip
    return Grid("What users sent and said", columns, rows)


def logged(account: Account) -> Grid:
    """The same requests as the request log has them."""
    rows = [
        (one.adapter or BASE, str(one.requests), str(one.failed), str(one.users))
        for one in account.logged
    ]
    return Grid("The request log", ("answered by", "requests", "failed", "users"), rows)


def expectations(account: Account) -> Grid:
    """What was expected, what was measured."""
    rows = [
        ("✓" if one.met else "✗", f"{act.number}. {one.text}", one.measured)
        for act in account.acts
        for one in act.expectations
    ]
    return Grid("Expected and measured", ("", "expected", "measured"), rows, texts=3)


def course(trial: Trial, rows_at_most: int) -> Grid:
    """A trial's interval over the users heard: the first, the last and some between."""
    rows = [
        (
            str(point.users),
            f"{point.seconds:.0f} s",
            interval_bar(point),
            signed(point.delta),
            f"[{signed(point.low)}, {signed(point.high)}]",
        )
        for point in spread(trial.course, rows_at_most)
    ]
    columns = ("users", "after", AXIS, "difference", "interval")
    return Grid(f"{trial.name}: helpful, difference in points", columns, rows)


def spread(points: Sequence[T], at_most: int) -> list[T]:
    """At most so many of them, evenly taken, the first and the last among them."""
    if len(points) <= at_most:
        return list(points)
    last = len(points) - 1
    return [points[round(step * last / (at_most - 1))] for step in range(at_most)]


def _interval_of(trial: Trial) -> str:
    state = trial.state
    return f"{signed(state.delta)} [{signed(state.ci_low)}, {signed(state.ci_high)}]"


def _difference(metric: MetricResult) -> str:
    if metric.name in SHARES:
        return f"{signed(metric.delta)} [{signed(metric.ci_low)}, {signed(metric.ci_high)}]"
    bounds = ", ".join(figure(bound) for bound in (metric.ci_low, metric.ci_high))
    return f"{figure(metric.delta)} [{bounds}]"


def _value(value: float | None, metric: MetricResult) -> str:
    return share(value) if metric.name in SHARES else figure(value)
