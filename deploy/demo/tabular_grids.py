"""The account of a replay as small tables, each drawn by the terminal and by the report alike."""

from collections.abc import Iterable, Mapping

from deploy.demo.figures import NONE, seconds
from deploy.demo.grids import Grid
from deploy.demo.tabular_account import FlightAccount, Month
from deploy.demo.tabular_policies import MONTHLY, NEVER
from evals.records import MetricResult

ALL = "all"


def summary(account: FlightAccount) -> Iterable[Grid]:
    """The tables in their order."""
    if account.first is not None:
        yield first(account)
    if account.months:
        yield months(account)
        for metric, title in (("brier", "Brier score (lower is better)"), ("auc", "AUC")):
            yield quality(account, metric, title)
        yield trials(account)
        yield drift(account)
    if account.logged:
        yield logged(account)
    yield timings(account)


def first(account: FlightAccount) -> Grid:
    """The first version against the base rate, on the last days before the replay."""
    assert account.first is not None
    rows = [
        (
            metric.name,
            _plain(metric.baseline),
            _plain(metric.candidate),
            difference(metric),
            str(metric.n),
            {True: "passed", False: "failed", None: NONE}[metric.passed],
        )
        for metric in account.first.verdict.metrics
    ]
    columns = ("held-out", "base rate", account.first.served_name, "difference [95 %]", "n",
               "gate")  # fmt: skip
    return Grid("The first version", columns, rows)


def months(account: FlightAccount) -> Grid:
    """What the loop did, a month a row."""
    rows = [
        (
            month.name,
            month.champion,
            month.drift_told if month.alerted else "nothing",
            "yes" if month.started else "no",
            NONE if month.retrained is None else _gated(month),
            month.then or NONE,
            "" if month.trial is None else month.trial.state.replace("_", " "),
            str(len(month.replayed.answers)),
        )
        for month in account.months
    ]
    columns = ("month", "answered by", "drift found after it", "retrained", "gate", "then",
               "experiment in it", "predictions")  # fmt: skip
    return Grid("Month by month", columns, rows, texts=7)


def quality(account: FlightAccount, metric: str, title: str) -> Grid:
    """A metric of the three policies, a month a row, and of all months together."""
    rows = [
        (month.name, str(len(month.scored)), *_policies(month.compared, metric))
        for month in account.months
        if month.scored is not None
    ]
    if account.overall:
        count = sum(len(month.scored) for month in account.months if month.scored is not None)
        rows.append((ALL, str(count), *_policies(account.overall, metric)))
    columns = ("month", "flights", "never", "monthly", "served", "served - never [95 %]",
               "served - monthly [95 %]")  # fmt: skip
    return Grid(title, columns, rows)


def trials(account: FlightAccount) -> Grid:
    """The experiment, an arm a row."""
    rows = []
    for month in account.months:
        state = month.trial
        for place, arm in enumerate(state.arms if state is not None else ()):
            assert state is not None
            last = place == len(state.arms) - 1
            interval = NONE if state.ci_low is None or state.ci_high is None else (
                f"{state.delta:+.4f} [{state.ci_low:+.4f}, {state.ci_high:+.4f}]"
            )  # fmt: skip
            rows.append(
                (
                    "" if place else month.name,
                    arm.name,
                    arm.adapter or NONE,
                    str(arm.users),
                    _plain(arm.mean),
                    interval if last else "",
                    state.state.replace("_", " ") if last else "",
                )
            )
    columns = ("experiment", "arm", "version", "flight numbers heard", "Brier",
               "difference [interval]", "decision")  # fmt: skip
    return Grid("On live traffic, half of the flight numbers each", columns, rows, texts=3)


def drift(account: FlightAccount) -> Grid:
    """What each look said first."""
    rows = [
        (month.name, month.look.decision.value, reason)
        for month in account.months
        if month.look is not None
        for reason in month.look.reasons[:3]
    ]
    return Grid("What the watch said (its first three reasons)", ("month", "verdict", "reason"),
                rows, texts=3)  # fmt: skip


def logged(account: FlightAccount) -> Grid:
    """The request log's own count."""
    rows = [
        (one.adapter or NONE, str(one.requests), str(one.failed), str(one.users))
        for one in account.logged
    ]
    return Grid("The request log", ("version", "requests", "failed", "flight numbers"), rows)


def timings(account: FlightAccount) -> Grid:
    """What took how long."""
    rows = [(f"{act.number}. {act.title}", seconds(act.seconds)) for act in account.acts]
    for month in account.months:
        rows += [(f"{month.name}: {what}", seconds(took)) for what, took in month.seconds.items()]
    if account.first is not None:
        rows += [(f"first version: {stage}", seconds(took))
                 for stage, took in account.first.seconds.items()]  # fmt: skip
    return Grid("Times", ("what", "took"), [*rows, ("everything", seconds(account.seconds))])


def expectations(account: FlightAccount) -> Grid:
    """What was said before and what came of it."""
    rows = [
        ("✓" if one.met else "✗", f"{act.title}: {one.text}", one.measured)
        for act in account.acts
        for one in act.expectations
    ]
    return Grid("Expected and measured", ("", "expected", "measured"), rows, texts=3)


def _gated(month: Month) -> str:
    """The decision, the metric that it rests on, and what became of the Brier score."""
    assert month.retrained is not None
    verdict = month.retrained.verdict
    brier = next(metric for metric in verdict.metrics if metric.name == "brier")
    first = verdict.reasons[0]
    word = first.partition(";")[0].rpartition(": ")[2]
    return f"{verdict.decision.value}: {first.partition(':')[0]} {word}; Brier {difference(brier)}"


def _policies(compared: Mapping[str, Mapping[str, MetricResult]], metric: str) -> list[str]:
    never, monthly = (compared[name][metric] for name in (NEVER, MONTHLY))
    return [
        _plain(never.baseline), _plain(monthly.baseline), _plain(never.candidate),
        difference(never), difference(monthly),
    ]  # fmt: skip


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def difference(metric: MetricResult) -> str:
    """A difference with its interval."""
    if metric.delta is None:
        return NONE
    if metric.ci_low is None or metric.ci_high is None:
        return f"{metric.delta:+.4f}"
    return f"{metric.delta:+.4f} [{metric.ci_low:+.4f}, {metric.ci_high:+.4f}]"
