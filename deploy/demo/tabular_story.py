"""The acts of the replay in order: the first version, the months, the chain of ids, the books.

It sends flights, lets the product work and compares with what was said before; it decides nothing.
Whatever ends a month early, Ctrl-C too, stops its experiment: the champion stays.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from deploy.demo.account import Act, Expectation
from deploy.demo.figures import seconds
from deploy.demo.loop import failing
from deploy.demo.stage import PROMOTED, LoopFailed, TrialOrder
from deploy.demo.tabular_account import FlightAccount, Month
from deploy.demo.tabular_loop import FlightLoop
from deploy.demo.tabular_policies import MONTHLY, NEVER, SERVED, compare, joined, score
from deploy.demo.tabular_replay import Replay
from deploy.demo.tabular_terms import FlightTerms, following, spec_until, start_of
from deploy.demo.tabular_year import Year, differing
from deploy.demo.telling import Teller
from evals.records import Decision
from gateway.database import now
from pipelines.champion import champion_of
from pipelines.passes import Outcome
from pipelines.spec import Spec
from pipelines.tabular_spec import sections


@dataclass(slots=True)
class FlightStory:
    """What the acts share.

    Attributes:
        pending: the version that the next month's experiment tries.
        tried: whether there was an experiment.
    """

    loop: FlightLoop
    replay: Replay
    year: Year
    teller: Teller
    account: FlightAccount
    pending: str | None = None
    tried: bool = False

    @property
    def terms(self) -> FlightTerms:
        """What was fixed beforehand."""
        return self.account.terms

    def expect(self, text: str, measured: str, met: bool) -> None:
        """Note an expectation of the current act, and say how it came out."""
        expectation = Expectation(text, measured, met)
        self.account.acts[-1].expectations.append(expectation)
        self.teller.outcome(expectation)


def play(story: FlightStory) -> None:
    """All acts; what happened is in the account, as far as it got."""
    account = story.account
    account.ended = "it was interrupted"  # until its last act has ended
    acts: list[tuple[str, Callable[[], None]]] = [
        ("The first version", lambda: first_version(story))
    ]
    for month in story.terms.budget.months:
        acts.append((f"{month:%B}", lambda month=month: replay_month(story, month)))  # type: ignore[misc]
    acts += [("The chain of ids", lambda: chain(story)), ("The books", lambda: books(story))]
    try:
        for number, (title, act) in enumerate(acts, 1):
            with _act(story, number, title):
                act()
        account.ended = None
    except LoopFailed as end:
        account.ended = str(end)
    finally:
        account.seconds = (now() - account.began).total_seconds()


def first_version(story: FlightStory) -> None:
    """A pass of the pipeline; the gate compares with the base rate, and nothing answered before."""
    account, terms = story.account, story.terms
    spec = spec_until(story.loop.spec, terms, terms.budget.months[0])
    with story.teller.progress() as show:
        outcome = account.first = story.loop.train(spec, show, first=True)
    _tell(story, outcome)
    story.expect(
        "the gate lets the first version through: better than the base rate",
        f"{outcome.verdict.decision}: {outcome.verdict.reasons[0]}",
        outcome.verdict.decision is Decision.PROMOTE and outcome.version is not None,
    )
    if outcome.version is None:
        raise LoopFailed("the gate did not let the first version through: nothing can be served")
    champion = story.loop.settled()
    story.expect(
        "it answers, for traffic and for MLflow",
        f"traffic: {champion.name}, MLflow: {champion.registered or 'none'}",
        champion.version == outcome.version and champion.agreed,
    )


def replay_month(story: FlightStory, month: date) -> None:
    """The flights of a month, the look after it, and what follows from that."""
    champion = story.loop.loop.champion()
    trial_id = _begin_trial(story)
    waiting = (
        nullcontext()
        if trial_id is None
        else story.loop.experiment(trial_id, story.terms.budget.decide_seconds)
    )
    began, end = time.monotonic(), start_of(following(month))
    with waiting, story.teller.progress() as show:
        replayed = story.replay.play(f"{month:%B}", story.year.asked[month], end, show)
    done = Month(month, champion.name, replayed)
    story.account.months.append(done)
    done.seconds["replay"] = time.monotonic() - began
    done.answered_by = Counter(one.version for one in replayed.answers)
    _check_features(story, done)
    _end_trial(story, done, trial_id)
    until = following(month)
    spec = spec_until(story.loop.spec, story.terms, until, (until - month).days)
    _look(story, done, spec)
    if done.started:
        _retrain(story, done, spec)
    _score(story, done)


def chain(story: FlightStory) -> None:
    """The ids from the last promotion back to the snapshot, and whether any is missing."""
    account, spec = story.account, story.loop.spec
    with story.loop.installation.database.session() as session:
        last = champion_of(session, spec.alias).last
    if last is None or last.to_version is None:
        raise LoopFailed("there is no promotion to follow")
    account.promotion_id = last.promotion_id
    found = account.chain = story.loop.loop.chain(last.promotion_id, last.to_version)
    story.teller.line(f"llmops lineage {last.promotion_id}", style="bold")
    story.teller.line(found.text)
    outcomes = [account.first, *(month.retrained for month in account.months)]
    made = next(one for one in outcomes if one is not None and one.version == last.to_version)
    wanted = {
        "data set": made.dataset_id,
        "training": made.training_id,
        "gate's verdict": made.verdict.verdict_id,
    }
    missing = [name for name, identifier in wanted.items() if identifier not in found.ids]
    story.expect(
        "data set, training and verdict are in the last promotion's lineage",
        f"missing: {', '.join(missing)}" if missing else "all there",
        not missing,
    )
    story.expect("llmops lineage check finds the chain whole", found.check, found.complete)


def books(story: FlightStory) -> None:
    """The account against the request log's; all months together; the time it took."""
    account, terms = story.account, story.terms
    with story.teller.progress() as show:
        account.rest = story.replay.finish(show)
    parts = [month.scored for month in account.months if month.scored is not None]
    whole = joined(parts)
    account.overall = {name: compare(whole, name, SERVED, terms.seed) for name in (NEVER, MONTHLY)}
    account.logged = story.loop.loop.answered(terms.user_prefix, account.began)
    logged = sum(one.requests for one in account.logged)
    failed = sum(one.failed for one in account.logged)
    sent = sum(one.sent for one in account.replays)
    lost = sum(one.failed for one in account.replays)
    reasons = [reason for one in account.replays for reason in one.reasons][:1]
    story.expect(
        "no prediction and no label failed",
        f"{sent} predictions and {sum(one.labels for one in account.replays)} labels sent, "
        f"{lost} failed; {failed} failed in the log{''.join(f' ({one})' for one in reasons)}",
        lost == failed == 0,
    )
    story.expect(
        "each prediction is in the request log once",
        f"{sent} sent, {logged} in the log",
        sent == logged,
    )
    took, most = (now() - account.began).total_seconds(), terms.budget.total_seconds
    story.expect(f"it took at most {most:.0f} s", f"{took:.0f} s", took <= most)


@contextmanager
def _act(story: FlightStory, number: int, title: str) -> Iterator[None]:
    act = Act(number, title)
    story.account.acts.append(act)
    story.teller.heading(f"{number}. {title}")
    began = time.monotonic()
    try:
        with failing():
            yield
    finally:
        act.seconds = time.monotonic() - began


def _begin_trial(story: FlightStory) -> str | None:
    if story.pending is None:
        return None
    order = TrialOrder("demo: A/B", story.pending, story.terms.budget.ab_users)
    trial_id = story.loop.loop.start_trial(order)
    story.teller.line(f"experiment {trial_id}: version {story.pending} on half of the users")
    story.pending, story.tried = None, True
    return trial_id


def _end_trial(story: FlightStory, done: Month, trial_id: str | None) -> None:
    if trial_id is None:
        return
    done.trial = story.loop.loop.trial(trial_id)
    story.teller.line(f"experiment: {done.trial.state}: {done.trial.message or ''}")
    champion = story.loop.settled()
    story.expect(
        "the controller ends the experiment, and who answers is who it says",
        f"{done.trial.state} with {done.trial.users} users heard; {champion.name} answers",
        done.trial.ended_at is not None
        and (champion.name == done.champion) == (done.trial.state != PROMOTED)
        and champion.agreed,
    )


def _check_features(story: FlightStory, done: Month) -> None:
    table = story.year.asked[done.first].set_index("flight_id")
    answers = done.replayed.answers
    known = table.loc[[one.flight_id for one in answers]]
    done.differing = differing(story.year.names, known, [one.features for one in answers])
    story.expect(
        "served features are those of the training join",
        f"{len(answers) - done.differing} of {len(answers)} answers",
        done.differing == 0 and len(answers) > 0,
    )


def _look(story: FlightStory, done: Month, spec: Spec) -> None:
    began, terms, loop = time.monotonic(), story.terms, story.loop
    done.look = loop.look(story.account.began, terms.budget.least_rows)
    done.seconds["look"] = time.monotonic() - began
    story.teller.line(f"watch: {done.look.decision}: {done.drift_told}")
    folder = loop.installation.settings.home / "demo" / "flights"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{spec.name}-{done.first:%Y-%m}.yaml"
    done.started = loop.triggered(done.look, spec, file)
    story.expect(
        "an alert starts one training, anything else none",
        f"{done.look.decision}, {'one started' if done.started else 'none started'}",
        done.started == done.alerted,
    )


def _retrain(story: FlightStory, done: Month, spec: Spec) -> None:
    """The gate judges on the month that has just ended; what it lets through is promoted, but for
    the first such version, which the next month's experiment tries."""
    began, loop = time.monotonic(), story.loop
    before = loop.loop.champion()
    with story.teller.progress() as show:
        outcome = done.retrained = loop.train(spec, show)
    done.seconds["training"] = time.monotonic() - began
    _tell(story, outcome)
    judged = outcome.verdict.decision is Decision.PROMOTE
    if not judged or outcome.version is None or outcome.version == before.version:
        done.then = f"{before.name} stays"
        wanted = before.version
    elif not story.tried and following(done.first) in story.terms.budget.months:
        story.pending, wanted = outcome.version, before.version
        done.then = f"version {outcome.version} is tried"
    else:
        loop.promote(outcome)
        wanted, done.then = outcome.version, f"version {outcome.version} promoted"
    champion = loop.loop.champion()
    story.expect(
        "who answers follows from the gate's verdict",
        f"{outcome.verdict.decision}: {done.then}; {champion.name} answers",
        champion.version == wanted,
    )


def _score(story: FlightStory, done: Month) -> None:
    began = time.monotonic()
    assert story.account.first is not None
    loop = story.loop
    training = sections(spec_until(loop.spec, story.terms, done.first)).training
    first: Path = loop.installation.settings.tabular_dir / story.account.first.served_name
    answers = done.replayed.answers
    done.scored = score(story.year, done.first, answers, first, training)
    done.compared = {
        name: compare(done.scored, name, SERVED, story.terms.seed) for name in (NEVER, MONTHLY)
    }
    done.seconds["other policies"] = time.monotonic() - began
    brier = {name: done.compared[name]["brier"] for name in (NEVER, MONTHLY)}
    story.teller.line(
        f"Brier of {len(done.scored)} flights: served {brier[NEVER].candidate:.4f}, "
        f"never {brier[NEVER].baseline:.4f}, monthly {brier[MONTHLY].baseline:.4f}"
    )


def _tell(story: FlightStory, outcome: Outcome) -> None:
    took = ", ".join(f"{stage} {seconds(span)}" for stage, span in outcome.seconds.items())
    story.teller.line(f"data set {outcome.dataset_id[:12]}, training {outcome.training_id}")
    story.teller.line(f"gate: {outcome.verdict.decision}: {outcome.verdict.reasons[0]}")
    story.teller.line(f"stages: {took}")
