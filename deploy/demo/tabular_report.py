"""The account of a replay, shown: tables on the terminal, a Markdown page with a picture beside it.

Nothing is written by hand: a run writes the page.
"""

from pathlib import Path

from deploy.demo import tabular_grids
from deploy.demo.grids import Grid
from deploy.demo.report import block, cell, section, table
from deploy.demo.tabular_account import FlightAccount
from deploy.demo.tabular_plot import lines_svg
from deploy.demo.tabular_policies import MONTHLY, NEVER, SERVED
from deploy.demo.tabular_terms import FlightTerms
from deploy.demo.telling import Teller
from gateway.whole_file import write_whole

ABOUT = """\
Flights of 2013 are asked about in the order of their departure, each once: `POST
/v1/predict/{alias}` with the flight's keys; the model server takes the features from the online
store, which is brought along hour by hour. The requests' own moments are real, the flights' are
simulated: the request's body and its tags name them. Labels come as feedback once a flight's end
was known. After each month the watch compares the predictions with the held-out days that the
champion was evaluated on; an alert starts a training through the trigger, with a rule of the
demo's own that names the month's spec. The gate compares candidate and champion on the month that
has just ended.

`served` is what the gateway answered. `never` is the first version for ever; `monthly` is fitted
anew at each month's start on all rows known then, with the same search and no gate. Both are
computed offline on the same flights, those that were asked about and arrived. Intervals: whole
days drawn with replacement.

Each look has a whole month's budget of false alarms, since the replay's months pass within
minutes, and takes the subject's budget of this month with it. A feature may lack a quarter of its
values (by default one in twenty): pressure lacks 13 % in this year's weather. Seasonal features are
what alerts in most months; any alert starts a training.
"""


def tell_terms(teller: Teller, terms: FlightTerms) -> None:
    """What is fixed beforehand."""
    teller.show(table(_terms(terms)))


def tell(teller: Teller, account: FlightAccount) -> None:
    """The summary: every table, and whether it came as was said."""
    teller.heading("Summary")
    for grid in tabular_grids.summary(account):
        teller.show(table(grid))
    teller.show(table(tabular_grids.expectations(account)))
    teller.line(ending(account), style="bold green" if account.as_expected else "bold red")


def ending(account: FlightAccount) -> str:
    """How it ended, in a line."""
    unmet = [one.text for one in account.expectations if not one.met]
    if account.ended is not None:
        return f"It ended early: {account.ended}"
    if unmet:
        return f"Not as expected: {'; '.join(unmet)}"
    return f"All {len(account.expectations)} expectations were met."


def write(account: FlightAccount, page: Path) -> list[Path]:
    """Write the page and the picture beside it; returns both paths."""
    written = [page]
    scored = [month for month in account.months if month.compared]
    if scored:
        picture = page.with_name(f"{page.stem}-brier.svg")
        series = {
            NEVER: [month.compared[NEVER]["brier"].baseline or 0.0 for month in scored],
            MONTHLY: [month.compared[MONTHLY]["brier"].baseline or 0.0 for month in scored],
            SERVED: [month.compared[NEVER]["brier"].candidate or 0.0 for month in scored],
        }
        names = [f"{month.first:%b}" for month in scored]
        write_whole(picture, lines_svg("Brier score by month (lower is better)", names, series))
        written.append(picture)
    write_whole(page, markdown(account, [path.name for path in written[1:]]))
    return written


def markdown(account: FlightAccount, pictures: list[str]) -> str:
    """The page."""
    terms = account.terms
    lines = [
        "# A year of flights, replayed",
        "",
        f"Written by `llmops demo tabular {terms.options}` on {account.began:%Y-%m-%d} at "
        f"{account.began:%H:%M} UTC; every figure is of that run. {ending(account)}",
        "",
        *in_short(account),
        *ABOUT.format(alias=terms.alias).splitlines(),
        "",
    ]
    for grid in tabular_grids.summary(account):
        lines += section(grid)
        if grid.title == "Month by month":
            lines += [line for name in pictures for line in (f"![Brier by month]({name})", "")]
    if account.chain is not None:
        lines += [f"## The chain of ids: `llmops lineage {account.promotion_id}`", "",
                  *block(account.chain.text), "",
                  f"`llmops lineage check`: {cell(account.chain.check)}", ""]  # fmt: skip
    lines += section(tabular_grids.expectations(account))
    data = [("snapshot", account.snapshot_id)]
    data += [(name, f"{count:,}") for name, count in account.rows.items()]
    lines += section(Grid("Data", ("what", ""), data, 2))
    lines += section(_terms(terms))
    machine = Grid("Machine and versions", ("what", "value"), tuple(account.machine.items()), 2)
    return "\n".join([*lines, *section(machine)]).rstrip() + "\n"


def in_short(account: FlightAccount) -> list[str]:
    """What came of it, in a few sentences."""
    if not account.overall:
        return []
    alerts = sum(month.alerted for month in account.months)
    decisions = [one.retrained.verdict.decision.value for one in account.months if one.retrained]
    counts = ", ".join(f"{decisions.count(name)} {name}" for name in dict.fromkeys(decisions))
    moved = [f"{one.name}: {one.then}" for one in account.months if "promoted" in one.then]
    compared = [
        f"than with `{name}` by {tabular_grids.difference(account.overall[name]['brier'])}"
        for name in (NEVER, MONTHLY)
    ]
    return [
        f"{len(account.months)} months, {alerts} alerts, {len(decisions)} trainings that they "
        f"started; the gate said: {counts or 'nothing'}. Promoted after a month: "
        f"{'; '.join(moved) or 'none'}. Over all months the Brier score of what was served differs "
        f"{' and '.join(compared)} (95 % interval; below zero: better).",
        "",
    ]


def _terms(terms: FlightTerms) -> Grid:
    return Grid("Fixed before the first flight", ("what", "value"), terms.lines(), texts=2)
