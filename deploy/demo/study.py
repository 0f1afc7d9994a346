"""The first two acts for several seeds: how much is gained depends on the users, the data set and
the training, and one seed is an anecdote.

Every seed has users and texts of its own, a data set made of their feedback alone, and a training
seed of its own; the held-out items and the base model are the same. Pooled, an item counts once:
its mean over the seeds against the base's, so seeds do not pass for more items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from deploy.demo.account import Account, Expectation
from deploy.demo.figures import interval_text, seconds, share, signed
from deploy.demo.grids import Grid
from deploy.demo.report import section, terms_grid
from deploy.demo.stage import Trained
from deploy.demo.story import Scene, Story, StoryEnds, before, fit, play
from deploy.demo.terms import QUICK
from evals.compare import paired
from evals.records import MetricResult

METRIC = "exact_match"


@dataclass(frozen=True, slots=True)
class Study:
    """The accounts of all seeds; `pooled` over the seeds, None unless all were trained."""

    accounts: Sequence[Account]
    pooled: MetricResult | None
    gain: float

    @property
    def expectations(self) -> list[Expectation]:
        """Those of the seeds, and the pooled one."""
        whole = [one for account in self.accounts for one in account.expectations]
        return [*whole, *([] if self.pooled is None else [_enough(self.pooled, self.gain)])]

    @property
    def as_expected(self) -> bool:
        """Whether every seed, and all together, gained enough."""
        complete = self.pooled is not None
        return complete and all(one.met for one in self.expectations)


def play_seeds(stories: Sequence[Story]) -> Study:
    """The acts of each seed, one after another; a seed that fails does not end the others."""
    for story in stories:
        story.teller.heading(f"Seed {story.terms.seed}")
        play(story, ACTS)
    accounts = [story.account for story in stories]
    trained = [account.trained for account in accounts if account.trained is not None]
    whole = len(trained) == len(stories) and all(one.ended is None for one in accounts)
    return Study(accounts, _pooled(trained) if whole else None, stories[0].terms.gain)


def gain(story: Story) -> None:
    """The bound that the seed's gain has to be above."""
    if story.account.trained is None:
        raise StoryEnds("nothing was trained")
    enough = _enough(story.account.trained.exact_match, story.terms.gain)
    story.expect(enough.text, enough.measured, enough.met)


ACTS: tuple[Scene, ...] = (
    ("Before: users of the base model", before),
    ("Train: from their feedback to an adapter", fit),
    ("The gain on held-out items", gain),
)


def grid(study: Study) -> Grid:
    """A seed a row, and all of them together."""
    rows = [_row(account) for account in study.accounts]
    if study.pooled is not None:
        rows.append(("pooled", "", "", *_compared(study.pooled), "", ""))
    columns = ("seed", "corrections", "rows trained on", "base", "candidate",
               "gain in points [95 %]", "n", "gate", "took")  # fmt: skip
    return Grid("Held-out exact match, by seed", columns, rows)


def markdown(study: Study) -> str:
    """The page."""
    first = study.accounts[0]
    seeds = ",".join(str(account.terms.seed) for account in study.accounts)
    quick = " --quick" if first.terms.budget == QUICK else ""
    lines = [
        "# The gain of one loop, over seeds",
        "",
        f"Written by `llmops demo study --seeds {seeds}{quick}` on {first.began:%Y-%m-%d} at "
        f"{first.began:%H:%M} UTC; every figure is of that run. {ending(study)}",
        "",
        *section(grid(study)),
        *section(terms_grid(first.terms)),
        *section(Grid("Machine and versions", ("what", "value"), tuple(first.machine.items()), 2)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def ending(study: Study) -> str:
    """How it came out, in a line."""
    broken = [f"seed {one.terms.seed}: {one.ended}" for one in study.accounts if one.ended]
    unmet = [f"{one.text} ({one.measured})" for one in study.expectations if not one.met]
    if study.as_expected:
        return f"All {len(study.expectations)} expectations were met."
    return f"Not as expected: {'; '.join([*broken, *unmet])}"


def _pooled(trained: Sequence[Trained]) -> MetricResult:
    """Each item's mean over the seeds, candidate against base."""
    base = [fmean(values) for values in zip(*(one.baseline for one in trained), strict=True)]
    other = [fmean(values) for values in zip(*(one.candidate for one in trained), strict=True)]
    return paired(METRIC, base, other)


def _enough(metric: MetricResult, least: float) -> Expectation:
    low = metric.ci_low
    text = f"the lower bound of the gain is above {signed(least)} points"
    return Expectation(text, interval_text(metric), low is not None and low > least)


def _row(account: Account) -> tuple[str, ...]:
    tally, trained = account.before, account.trained
    corrected = "" if tally is None else str(tally.corrected)
    seed, took = str(account.terms.seed), seconds(account.seconds)
    if trained is None:
        return (seed, corrected, "", "", "", account.ended or "", "", "", took)
    rows = str(trained.rows.get("train", ""))
    return (seed, corrected, rows, *_compared(trained.exact_match), trained.verdict.decision, took)


def _compared(metric: MetricResult) -> tuple[str, str, str, str]:
    between = f"{signed(metric.delta)} [{signed(metric.ci_low)}, {signed(metric.ci_high)}]"
    return share(metric.baseline), share(metric.candidate), between, str(metric.n)
