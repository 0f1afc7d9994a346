"""`llmops demo`: simulated users drive the whole loop once on the running stack."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gateway.database import now
from gateway.settings import load_settings
from gateway.whole_file import write_whole

if TYPE_CHECKING:
    from deploy.demo.installed import Installed
    from deploy.demo.story import Story
    from deploy.demo.telling import Teller
    from deploy.demo.terms import Terms

SEEDS_AT_MOST = 20
INTERRUPTED = 130

app = typer.Typer(help="The whole loop, once around, with simulated users.")

Quick = Annotated[bool, typer.Option(help="Fewer users and items: for tests, not for figures.")]
Out = Annotated[Path | None, typer.Option(help="Write the report to this Markdown file.")]
Reset = Annotated[
    bool, typer.Option(help="Roll the champion back to the base model first (audited).")
]


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    seed: Annotated[int | None, typer.Option(min=0, help="of users, data set, training")] = None,
    quick: Quick = False,
    reset: Reset = False,
    out: Out = None,
) -> None:
    """Users, feedback, training, A/B, A/A, a drill, and the chain of ids, with a report."""
    if context.invoked_subcommand is not None:
        return
    from deploy.demo import report, story

    with _stage(reset) as (teller, installed):
        play = _prepared(teller, installed, seed if seed is not None else _fresh(), quick)
        report.tell_terms(teller, play.terms)
        story.play(play)
        account = play.account
        report.tell(teller, account)
        for path in report.write(account, out) if out is not None else ():
            teller.line(f"written: {path}")
    if not account.as_expected:
        raise typer.Exit(1)


@app.command()
def study(
    seeds: Annotated[str, typer.Option(help="such as 1,2,3")] = "1,2,3",
    quick: Quick = False,
    reset: Reset = False,
    out: Out = None,
) -> None:
    """Users and training for several seeds: what is gained on held-out items, and how surely."""
    from deploy.demo import report
    from deploy.demo import study as studies

    chosen = _seeds(seeds)
    with _stage(reset) as (teller, installed):
        stories = [_prepared(teller, installed, seed, quick) for seed in chosen]
        report.tell_terms(teller, stories[0].terms)
        teller.line(f"the same for seeds {seeds}, but for the seed")
        done = studies.play_seeds(stories)
        teller.heading("Summary")
        teller.show(report.table(studies.grid(done)))
        style = "bold green" if done.as_expected else "bold red"
        teller.line(studies.ending(done), style=style)
        if out is not None:
            write_whole(out, studies.markdown(done))
            teller.line(f"written: {out}")
    if not done.as_expected:
        raise typer.Exit(1)


@app.command()
def tabular(
    seed: Annotated[int | None, typer.Option(min=0, help="of flights and training")] = None,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Flights of 2013 replayed: served, watched, retrained, gated, month by month."""
    from deploy.demo import tabular_report, tabular_story
    from deploy.demo.stage import LoopFailed
    from deploy.demo.tabular_installed import installed, prepared

    teller = _teller()
    with _ending(teller), installed(load_settings()) as loop:
        problems = loop.problems()
        if problems:
            raise LoopFailed("\n".join(problems))
        terms = loop.terms(seed if seed is not None else _fresh(), quick=quick)
        tabular_report.tell_terms(teller, terms)
        with prepared(loop, terms, teller) as story:
            tabular_story.play(story)
            account = story.account
        tabular_report.tell(teller, account)
        for path in tabular_report.write(account, out) if out is not None else ():
            teller.line(f"written: {path}")
    if not account.as_expected:
        raise typer.Exit(1)


@contextmanager
def _stage(reset: bool) -> Iterator[tuple["Teller", "Installed"]]:
    """The console and the running stack, if nothing stands in the way; Ctrl-C ends tidily."""
    from deploy.demo.installed import installed

    teller = _teller()
    with _ending(teller), installed(load_settings()) as stack:
        _ready(teller, stack, reset)
        yield teller, stack


def _teller() -> "Teller":
    from deploy.demo.telling import Teller

    for number in (signal.SIGTERM, signal.SIGHUP):  # end as Ctrl-C does: tidily
        signal.signal(number, signal.default_int_handler)
    return Teller(Console())


@contextmanager
def _ending(teller: "Teller") -> Iterator[None]:
    """A failure and Ctrl-C end the command with a message."""
    from deploy.demo.stage import LoopFailed

    try:
        yield
    except LoopFailed as error:
        teller.line(str(error), style="bold red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        teller.line("interrupted: no experiment of the demo is running; the champion stays",
                    style="bold red")  # fmt: skip
        raise typer.Exit(INTERRUPTED) from interrupt


def _ready(teller: "Teller", stack: "Installed", reset: bool) -> None:
    """Ends the command where something stands in the way."""
    problems = list(stack.loop.problems())
    champion = stack.loop.champion()
    if not problems and champion.version is not None and reset:
        stack.loop.return_to_base("demo --reset: it begins with the base model")
        teller.line(f"champion: {champion.name} → base (rolled back, audited)")
    elif champion.version is not None:
        problems.append(
            f"{stack.counter.alias} is answered by {champion.name}, and the demo begins with the "
            "base model: --reset rolls it back first"
        )
    for problem in problems:
        teller.line(problem, style="bold red")
    if problems:
        raise typer.Exit(1)


def _prepared(teller: "Teller", stack: "Installed", seed: int, quick: bool) -> "Story":
    from deploy.demo.account import Account
    from deploy.demo.crowd import Crowd
    from deploy.demo.machine import facts
    from deploy.demo.story import Story
    from deploy.demo.users import arrivals

    terms = _terms(stack, seed, quick)
    arriving = arrivals(seed, terms.rule)
    account = Account(terms, now(), {**facts(), **stack.loop.versions()})
    crowd = Crowd(stack.counter, arriving, terms.budget.at_once)
    return Story(stack.loop, crowd, teller, account)


def _terms(stack: "Installed", seed: int, quick: bool) -> "Terms":
    from deploy.demo.terms import QUICK, Budget, Terms

    budget = QUICK if quick else Budget()
    thresholds = stack.loop.thresholds()
    return Terms(alias=stack.counter.alias, seed=seed, budget=budget, thresholds=thresholds)


def _fresh() -> int:
    """A seed that was not used before; it is printed, and --seed replays it."""
    return random.randrange(1, 1_000_000)


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--seeds {text!r}: numbers with commas between them") from error
    if len(set(seeds)) != len(seeds) or min(seeds) < 0 or len(seeds) > SEEDS_AT_MOST:
        raise typer.BadParameter(
            f"--seeds {text!r}: at most {SEEDS_AT_MOST} different numbers from 0 on"
        )
    return seeds
