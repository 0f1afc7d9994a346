"""The demo's acts, in order, on a scripted gateway whose feedback really decides."""

import io
from dataclasses import replace
from datetime import timedelta

import pytest
from rich.console import Console

from deploy.demo import story
from deploy.demo.account import Account, Act
from deploy.demo.crowd import Crowd
from deploy.demo.desk import Counter
from deploy.demo.stage import HELD, PROMOTED, ROLLED_BACK, RUNNING, STOPPED
from deploy.demo.story import Story
from deploy.demo.telling import Teller
from deploy.demo.terms import QUICK, Budget, Terms
from deploy.demo.trials import Casting, hold
from deploy.demo.users import arrivals
from gateway.database import now
from tests.deploy.scripted_loop import ScriptedGateway, ScriptedLoop, gateway_for, served

SEED = 1
BUDGET = replace(QUICK, decide_seconds=3.0)


@pytest.fixture
def gateway():
    with served(gateway_for([SEED, 2, 3], delay=0.03)) as gateway:
        yield gateway


def prepared(loop: ScriptedLoop, seed: int = SEED, budget: Budget = BUDGET) -> Story:
    """A story that has not begun."""
    terms = Terms("extractor", seed, budget=budget, thresholds=loop.thresholds())
    counter = Counter(loop.gateway.url, "sk", "extractor")
    crowd = Crowd(counter, arrivals(seed, terms.rule), budget.at_once, 0.05)
    account = Account(terms, now(), {"cores": "2"})
    return Story(loop, crowd, Teller(Console(file=io.StringIO(), width=120)), account)


def printed(told: Story) -> str:
    """What was said so far."""
    file = told.teller.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _unmet(account: Account) -> list[str]:
    return [one.text for one in account.expectations if not one.met]


def test_the_whole_story(gateway: ScriptedGateway):
    loop = ScriptedLoop(gateway)
    told = prepared(loop)
    story.play(told)
    account = told.account
    assert account.as_expected, (account.ended, _unmet(account))
    assert [trial.state.state for trial in account.trials] == [PROMOTED, HELD, ROLLED_BACK]
    ab, aa, drill = account.trials
    assert loop.champion().version == "1" == drill.champion.version
    assert aa.state.arms[0].adapter == aa.state.arms[1].adapter
    assert aa.rollout_seconds is None and aa.stray_seconds is None
    for trial in (ab, drill):
        assert trial.rollout_seconds is not None and 0 <= trial.rollout_seconds < 5
        assert trial.stray_seconds == 0.0
        assert trial.decided_seconds is not None and trial.settled_seconds is not None
    users = [point.users for point in ab.course]
    assert users == sorted(set(users)) and users
    assert ab.course[-1].low > 0 > drill.course[-1].high
    assert account.tally.sent == len(gateway.rows) == sum(one.requests for one in account.logged)
    output = printed(told)
    for _, act in enumerate(account.acts, 1):
        assert f"{act.number}. {act.title}" in output
    assert "✗" not in output
    assert f"llmops lineage {ab.state.promotion_id}" in output


def test_a_reckless_controller_is_caught_by_the_a_a(gateway: ScriptedGateway):
    told = prepared(ScriptedLoop(gateway, reckless=True))
    story.play(told)
    assert not told.account.as_expected
    assert "nothing is promoted" in _unmet(told.account)


def test_a_candidate_that_the_gate_stops_ends_the_story(gateway: ScriptedGateway):
    told = prepared(ScriptedLoop(gateway, gain=0.1))
    story.play(told)
    account = told.account
    assert account.ended is not None and "gate" in account.ended
    assert not account.trials and not account.as_expected
    assert len(account.acts) == 2


def test_a_useless_adapter_is_not_promoted_and_the_experiment_ends(gateway: ScriptedGateway):
    loop = ScriptedLoop(gateway)
    told = prepared(loop)
    told.account.acts.append(Act(1, "by hand"))
    version, _ = loop._register(0.0)
    casting = Casting("A/B", version, 30)
    trial = hold(loop, told.crowd, told.terms, casting, told.teller)
    assert trial.state.state == HELD
    assert not loop.problems()


def test_failed_requests_are_not_hushed_up(gateway: ScriptedGateway):
    gateway.fails = 50
    told = prepared(ScriptedLoop(gateway))
    story.play(told)
    account = told.account
    assert not account.as_expected
    assert account.tally.failed == len(gateway.rows) // 50 > 0
    assert "every request of every user was answered" in _unmet(account)
    assert "each is in the request log once" not in _unmet(account)


def test_a_request_that_the_log_lost_is_missed(gateway: ScriptedGateway):
    class Forgetful(ScriptedLoop):
        def answered(self, users, since):
            first, *others = super().answered(users, since)
            return [replace(first, requests=first.requests - 1), *others]

    told = prepared(Forgetful(gateway))
    story.play(told)
    assert _unmet(told.account) == ["each is in the request log once"]


def test_traffic_that_stays_with_the_loser_is_seen(gateway: ScriptedGateway):
    class Sluggish(ScriptedLoop):
        def _crown(self, version):
            """Decides, and leaves the split as it is."""
            self.top = version

    loop = Sluggish(gateway)
    told = prepared(loop)
    story.play(told)
    stray = told.account.trials[0].stray_seconds
    assert stray is not None and stray > 0.01


def test_an_interrupted_story_stops_its_experiment(gateway: ScriptedGateway):
    loop = ScriptedLoop(gateway, interrupt_after=2)
    told = prepared(loop)
    with pytest.raises(KeyboardInterrupt):
        story.play(told)
    assert [trial.state for trial in loop.trials.values()] == [STOPPED]
    assert loop.champion().version is None
    assert not told.account.as_expected


def test_an_undecided_experiment_is_stopped_and_said(gateway: ScriptedGateway):
    class Asleep(ScriptedLoop):
        def _decide(self, trial, values, low, high):
            return

    loop = Asleep(gateway)
    told = prepared(loop, budget=replace(BUDGET, ab_users=10, decide_seconds=0.2))
    story.play(told)
    (trial,) = told.account.trials
    assert trial.state.state == STOPPED and trial.settled_seconds is None
    assert told.account.ended is not None and "not promoted" in told.account.ended
    assert not any(one.state == RUNNING for one in loop.trials.values())


def test_what_was_there_before_does_not_count(gateway: ScriptedGateway):
    loop = ScriptedLoop(gateway)
    first, second = prepared(loop), prepared(loop)
    story.play(first)
    loop.return_to_base("again")
    second.account.began -= timedelta(hours=1)
    story.play(second)
    assert second.account.as_expected, (second.account.ended, _unmet(second.account))
