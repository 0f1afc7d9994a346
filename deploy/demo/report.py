"""The account, shown: tables on the terminal, a Markdown page with pictures beside it.

Nothing is computed here but shares and spans; nothing is written by hand: a run writes the page.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from deploy.demo import grids
from deploy.demo.account import Account, Trial
from deploy.demo.grids import Grid
from deploy.demo.plot import interval_svg
from deploy.demo.telling import Teller
from deploy.demo.terms import Terms
from gateway.whole_file import write_whole

COURSE_ROWS = 9


def tell_terms(teller: Teller, terms: Terms) -> None:
    """What is fixed beforehand, with its digest."""
    teller.show(table(terms_grid(terms)))


def tell(teller: Teller, account: Account) -> None:
    """The summary: every table, and the verdict on the demo itself."""
    teller.heading("Summary")
    for trial in account.trials:
        teller.show(table(grids.course(trial, COURSE_ROWS)))
    for grid in summary(account):
        teller.show(table(grid))
    teller.line(ending(account), style="bold green" if account.as_expected else "bold red")


def summary(account: Account) -> Iterable[Grid]:
    """The tables in their order."""
    if account.trained is not None:
        yield grids.held_out(account.trained)
    if account.trials:
        yield grids.trials(account)
    yield grids.requests(account)
    if account.logged:
        yield grids.logged(account)
    yield grids.timings(account)
    yield grids.expectations(account)


def terms_grid(terms: Terms) -> Grid:
    """What was fixed beforehand."""
    title = f"Fixed before the first request (digest {terms.digest})"
    return Grid(title, ("what", "value"), terms.lines(), texts=2)


def ending(account: Account) -> str:
    """How the demo ended, in a line."""
    unmet = [one.text for one in account.expectations if not one.met]
    if account.ended is not None:
        return f"It ended early: {account.ended}"
    if unmet:
        return f"Not as expected: {'; '.join(unmet)}"
    return f"All {len(account.expectations)} expectations were met."


def table(grid: Grid) -> Table:
    """A grid for the terminal."""
    drawn = Table(title=grid.title, title_justify="left", title_style="bold", box=None)
    for number, name in enumerate(grid.columns):
        text = grid.is_text(number)
        drawn.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for row in grid.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def write(account: Account, page: Path) -> list[Path]:
    """Write the page and, beside it, a picture of every trial; returns all paths."""
    pictures = {trial.name: _picture(page, trial) for trial in account.trials}
    for trial in account.trials:
        write_whole(pictures[trial.name], interval_svg(trial))
    write_whole(page, markdown(account, {name: path.name for name, path in pictures.items()}))
    return [page, *pictures.values()]


def markdown(account: Account, pictures: dict[str, str]) -> str:
    """The page."""
    terms = account.terms
    lines = [
        "# The loop, once around",
        "",
        f"Written by `llmops demo {terms.options}` on {account.began:%Y-%m-%d} at "
        f"{account.began:%H:%M} UTC; every figure is of that run. {ending(account)}",
        "",
        *section(grids.expectations(account)),
    ]
    if account.trained is not None:
        lines += section(grids.held_out(account.trained))
        lines += _made(account)
    if account.trials:
        lines += section(grids.trials(account))
        for trial in account.trials:
            lines += [f"![{trial.name}: {trial.outcome}]({pictures[trial.name]})", ""]
    lines += section(grids.requests(account))
    if account.logged:
        lines += section(grids.logged(account))
    lines += section(grids.timings(account))
    if account.chain is not None:
        lines += ["## The chain of ids", "", *block(account.chain.text), ""]
        lines += [f"`llmops lineage check`: {cell(account.chain.check)}", ""]
    lines += section(terms_grid(terms))
    machine = Grid("Machine and versions", ("what", "value"), tuple(account.machine.items()), 2)
    return "\n".join([*lines, *section(machine)]).rstrip() + "\n"


def _made(account: Account) -> list[str]:
    trained = account.trained
    if trained is None:
        return []
    rows = [(name, str(count)) for name, count in trained.rows.items()]
    return section(Grid(f"Data set {trained.dataset_id[:12]}", ("rows", "count"), rows))


def section(grid: Grid) -> list[str]:
    """A grid under its heading, in Markdown."""
    rule = ["---" if grid.is_text(number) else "---:" for number in range(len(grid.columns))]
    return [f"## {grid.title}", "", *map(_row, (grid.columns, rule, *grid.rows)), ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell(one) for one in cells)} |"


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|").replace("\n", " ").strip()


def block(text: str) -> list[str]:
    """Text as it is, in Markdown."""
    return ["```text", *text.replace("```", "'''").splitlines(), "```"]


def _picture(page: Path, trial: Trial) -> Path:
    name = "".join(one for one in trial.name.lower() if one.isalnum())
    return page.with_name(f"{page.stem}-{name}.svg")
