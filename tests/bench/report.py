"""The benchmark's result as a Markdown table, with the ratios that it is about."""

from dataclasses import dataclass
from typing import Any

from tests.bench.contenders import GATEWAY, LITELLM, ROUTER

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, the figure's name and its format."""

    heading: str
    name: str
    form: str


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of ours to a peer's, and how large it may be."""

    what: str
    name: str
    peer: str
    at_most: float


COLUMNS = (
    Column("p50, µs", "p50_us", ".0f"),
    Column("added p50, µs", "added_p50_us", ".0f"),
    Column("added p99, µs", "added_p99_us", ".0f"),
    Column("requests/s", "requests_per_second", ",.0f"),
    Column("CPU µs/request", "cpu_us_per_request", ",.0f"),
    Column("added first event, ms", "added_first_ms", ".2f"),
    Column("added lag p50, ms", "added_lag_p50_ms", ".2f"),
    Column("added lag p99, ms", "added_lag_p99_ms", ".2f"),
    Column("CPU µs/event", "cpu_us_per_event", ".0f"),
    Column("MB at start", "start_mb", ".0f"),
    Column("MB at end", "end_mb", ".0f"),
)
GOALS = (
    Goal("CPU per unary request", "cpu_us_per_request", ROUTER, 1.5),
    Goal("CPU per unary request", "cpu_us_per_request", LITELLM, 1 / 30),
    Goal("added p50, one connection", "added_p50_us", ROUTER, 1.5),
    Goal("CPU per relayed event", "cpu_us_per_event", ROUTER, 1.5),
)


def table(figures: Figures) -> str:
    """One row a contender."""
    lines = [
        "| | " + " | ".join(column.heading for column in COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for name, found in figures.items():
        cells = [_cell(found, column) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(figures: Figures) -> list[dict[str, Any]]:
    """Every goal with what was measured; left out where a contender did not run."""
    found = []
    for goal in GOALS:
        ours = figures.get(GATEWAY, {}).get(goal.name)
        theirs = figures.get(goal.peer, {}).get(goal.name)
        if ours is None or not theirs:
            continue
        ratio = ours / theirs
        met = ratio <= goal.at_most
        found.append(
            {
                "what": goal.what,
                "peer": goal.peer,
                "ratio": ratio,
                "goal": goal.at_most,
                "met": met,
            }
        )
    return found


def ratio_table(found: list[dict[str, Any]]) -> str:
    """The ratios as a table."""
    lines = ["| gateway / peer | ratio | goal | |", "| --- | ---: | ---: | --- |"]
    for one in found:
        ratio, goal = _ratio(one["ratio"]), _ratio(one["goal"])
        verdict = "met" if one["met"] else "missed"
        lines.append(f"| {one['what']} / {one['peer']} | {ratio} | ≤ {goal} | {verdict} |")
    return "\n".join(lines)


def _cell(found: dict[str, float], column: Column) -> str:
    value = found.get(column.name)
    return format(value, column.form) if value else "-"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"1/{1 / value:.0f}"
