"""The demo's acts in order. Each starts users, lets the loop work and compares with what was said
before; it decides nothing and moves nothing itself.

Whatever ends an act early, Ctrl-C too, stops its experiment: the champion stays.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.demo.account import Account, Act, Expectation
from deploy.demo.crowd import Crowd
from deploy.demo.figures import interval_text, percent, seconds, signed
from deploy.demo.stage import HELD, PROMOTED, ROLLED_BACK, Loop, LoopFailed, Trained, TrainingOrder
from deploy.demo.telling import Teller
from deploy.demo.terms import Terms
from deploy.demo.trials import Casting, hold
from gateway.database import now

RUIN_REASON = "drill"


class StoryEnds(RuntimeError):
    """There is nothing for the later acts to work with; the message says why."""


@dataclass(slots=True)
class Story:
    """What the acts share."""

    loop: Loop
    crowd: Crowd
    teller: Teller
    account: Account

    @property
    def terms(self) -> Terms:
        """What was fixed beforehand."""
        return self.account.terms

    def expect(self, text: str, measured: str, met: bool) -> None:
        """Note an expectation of the current act, and say how it came out."""
        expectation = Expectation(text, measured, met)
        self.account.acts[-1].expectations.append(expectation)
        self.teller.outcome(expectation)


Scene = tuple[str, Callable[[Story], object]]


def play(story: Story, acts: Sequence[Scene] | None = None) -> None:
    """All acts, or those given; what happened is in the account, as far as it got."""
    began = time.monotonic()
    story.account.began = now()
    story.account.ended = "it was interrupted"  # until its last act has ended
    try:
        for number, (title, act) in enumerate(acts or ACTS, 1):
            with _act(story, number, title):
                act(story)
        story.account.ended = None
    except (StoryEnds, LoopFailed) as end:
        story.account.ended = str(end)
    finally:
        story.account.seconds = time.monotonic() - began


def before(story: Story) -> None:
    """Users of the base model; what they correct becomes the data set."""
    budget = story.terms.budget
    champion = story.loop.champion()
    story.expect("the base model answers", champion.name, champion.version is None)
    with story.teller.progress() as show:
        tally = asyncio.run(story.crowd.gather(budget.before_users, show))
    story.account.before = tally
    story.teller.line(
        f"{tally.answered} answers to {tally.users} users, {percent(tally.right, tally.answered)} "
        f"right; said: {tally.helpful} helpful, {tally.unhelpful} not, {tally.silent} nothing; "
        f"{tally.corrected} corrections"
    )
    story.expect("every request is answered", f"{tally.failed} failed", tally.failed == 0)


def fit(story: Story) -> Trained:
    """The pipeline, from feedback to an adapter that every replica has, and the gate's verdict."""
    order = TrainingOrder(
        seed=story.terms.seed, since=story.account.began, held_out=story.terms.budget.held_out
    )
    with story.teller.progress() as show:
        trained = story.account.trained = story.loop.train(order, show)
    _tell_trained(story.teller, trained)
    return trained


def train(story: Story) -> None:
    """The pipeline; the gate has to let the candidate through."""
    trained = fit(story)
    verdict = trained.verdict
    story.expect(
        "the gate lets the candidate through",
        f"{verdict.decision}: {'; '.join(verdict.reasons[:1])}",
        trained.promotable,
    )
    if not trained.promotable:
        raise StoryEnds("the gate did not let the candidate through, so there is none to try")


def _tell_trained(teller: Teller, trained: Trained) -> None:
    """What a pass of the pipeline made and measured."""
    rows = ", ".join(f"{count} {name}" for name, count in trained.rows.items())
    teller.line(f"data set {trained.dataset_id}: {rows}")
    first, last = trained.losses
    if first is not None and last is not None:
        teller.line(f"training {trained.training_id}: loss {first:.3f} → {last:.3f}")
    teller.line(f"adapter {trained.adapter}, version {trained.version or 'none'}")
    teller.line(f"held-out exact match, candidate - base: {interval_text(trained.exact_match)}")
    stages = ", ".join(f"{name} {seconds(took)}" for name, took in trained.seconds.items())
    teller.line(f"stages: {stages}")


def compare(story: Story) -> None:
    """The adapter against the base model on live users; the controller decides."""
    version = _trained(story)
    casting = Casting("A/B", version, story.terms.budget.ab_users)
    trial = hold(story.loop, story.crowd, story.terms, casting, story.teller)
    story.account.trials.append(trial)
    story.expect("the controller promotes it", trial.outcome, trial.state.state == PROMOTED)
    _expect_moved(story)
    _expect_champion(story, version, "version {} is champion, for traffic and for MLflow")
    _expect_clean(story)
    if trial.state.state != PROMOTED:
        raise StoryEnds("the adapter was not promoted, so there is no champion to go on with")


def compare_with_itself(story: Story) -> None:
    """Both arms are the champion: whoever promotes here, promotes noise."""
    version = story.loop.champion().version
    casting = Casting("A/A", None, story.terms.budget.aa_users)
    trial = hold(story.loop, story.crowd, story.terms, casting, story.teller)
    story.account.trials.append(trial)
    story.expect("nothing is promoted", trial.outcome, trial.state.state == HELD)
    low, high = trial.state.ci_low, trial.state.ci_high
    story.expect(
        "the interval of the difference holds zero",
        f"[{signed(low)}, {signed(high)}] points",
        low is not None and high is not None and low <= 0 <= high,
    )
    _expect_champion(story, version, "version {} is still champion")
    _expect_clean(story)


def drill(story: Story) -> None:
    """A ruined copy of the adapter, registered unjudged: users' feedback has to get rid of it."""
    version = _trained(story)
    champion = story.loop.champion().version
    ruined, adapter = story.loop.register_ruined(version, RUIN_REASON)
    story.teller.line(f"version {ruined}: {adapter}, version {version} with its weights spoilt")
    casting = Casting("drill", ruined, story.terms.budget.drill_users, RUIN_REASON)
    trial = hold(story.loop, story.crowd, story.terms, casting, story.teller)
    story.account.trials.append(trial)
    story.expect("the controller rolls it back", trial.outcome, trial.state.state == ROLLED_BACK)
    _expect_moved(story)
    _expect_champion(story, champion, "version {} is still champion")
    _expect_clean(story)


def chain(story: Story) -> None:
    """The ids from the users' requests to the moved alias, and whether any is missing."""
    trained, promoted = story.account.trained, story.account.trials[0].state
    if trained is None or promoted.promotion_id is None:
        raise StoryEnds("there is no promotion to follow")
    found = story.account.chain = story.loop.chain(promoted.promotion_id, _trained(story))
    story.teller.line(f"llmops lineage {promoted.promotion_id}", style="bold")
    story.teller.line(found.text)
    wanted = {
        "data set": trained.dataset_id,
        "training": trained.training_id,
        "gate's verdict": trained.verdict.verdict_id,
        "experiment": promoted.experiment_id,
    }
    missing = [name for name, identifier in wanted.items() if identifier not in found.ids]
    story.expect(
        "data set, training, verdict and experiment are in the promotion's lineage",
        f"missing: {', '.join(missing)}" if missing else "all there",
        not missing,
    )
    story.expect("llmops lineage check finds the chain whole", found.check, found.complete)


def books(story: Story) -> None:
    """The users' own count against the request log's; the time it took."""
    account = story.account
    account.logged = story.loop.answered(story.terms.user_prefix, account.began)
    logged = sum(one.requests for one in account.logged)
    failed = sum(one.failed for one in account.logged)
    tally = account.tally
    story.expect(
        "every request of every user was answered",
        f"{tally.sent} sent, {tally.failed} failed; {failed} failed in the log",
        tally.failed == failed == 0,
    )
    story.expect(
        "each is in the request log once",
        f"{tally.sent} sent, {logged} in the log",
        tally.sent == logged,
    )
    took = (now() - account.began).total_seconds()
    most = story.terms.budget.total_seconds
    story.expect(f"it took at most {most:.0f} s", f"{took:.0f} s", took <= most)


ACTS: tuple[Scene, ...] = (
    ("Before: users of the base model", before),
    ("Train: from their feedback to an adapter", train),
    ("A/B: the adapter against the base model", compare),
    ("A/A: the champion against itself", compare_with_itself),
    ("Drill: a ruined adapter", drill),
    ("The chain of ids", chain),
    ("The books", books),
)


@contextmanager
def _act(story: Story, number: int, title: str) -> Iterator[None]:
    act = Act(number, title)
    story.account.acts.append(act)
    story.teller.heading(f"{number}. {title}")
    began = time.monotonic()
    try:
        yield
    finally:
        act.seconds = time.monotonic() - began


def _trained(story: Story) -> str:
    trained = story.account.trained
    if trained is None or trained.version is None:
        raise StoryEnds("nothing was trained")
    return trained.version


def _expect_champion(story: Story, version: str | None, text: str) -> None:
    champion = story.account.trials[-1].champion
    registered = champion.registered or "base"
    story.expect(
        text.format(version or "base"),
        f"traffic: {champion.name}, MLflow: {registered}",
        champion.version == version and champion.agreed,
    )


def _expect_moved(story: Story) -> None:
    stray, most = story.account.trials[-1].stray_seconds, story.terms.budget.stray_seconds
    story.expect(
        f"from {most:.0f} s after the decision on, the loser answers nobody",
        "there is no loser" if stray is None else f"its last request came {seconds(stray)} after",
        stray is not None and stray <= most,
    )


def _expect_clean(story: Story) -> None:
    trial = story.account.trials[-1]
    failed = trial.tally.failed
    reasons = f" ({trial.tally.reasons[0]})" if trial.tally.reasons else ""
    story.expect(
        "no request fails while traffic moves",
        f"{trial.tally.sent} sent, {failed} failed{reasons}",
        failed == 0,
    )
