"""One experiment of the demo: users come until the controller has decided, then a few more."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil

from deploy.demo.account import Point, Trial
from deploy.demo.crowd import Crowd, Tally
from deploy.demo.figures import signed
from deploy.demo.stage import (
    PROMOTED,
    ROLLED_BACK,
    ArmState,
    Loop,
    Show,
    Step,
    TrialOrder,
    TrialState,
)
from deploy.demo.telling import Teller
from deploy.demo.terms import Terms
from gateway.database import now

SETTLE_SECONDS = 20.0
SETTLE_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Casting:
    """Who plays: the trial's name, the candidate (None: the champion itself), users at most, and
    why a candidate without a verdict may play."""

    name: str
    version: str | None
    users: int
    unjudged: str | None = None


@dataclass(slots=True)
class _Watch:
    """Looks at a running experiment again and again and keeps its course."""

    loop: Loop
    experiment_id: str
    state: TrialState
    course: list[Point] = field(default_factory=list)

    async def decided(self) -> bool:
        self.state = await asyncio.to_thread(self.loop.trial, self.experiment_id)
        point = _point(self.state)
        if point is not None and (not self.course or self.course[-1].users != point.users):
            self.course.append(point)
        return not self.state.running


def hold(loop: Loop, crowd: Crowd, terms: Terms, casting: Casting, teller: Teller) -> Trial:
    """Start the experiment, let users come until it is decided, see what came of it.

    One that is not decided in its budget, or that is interrupted, is stopped.
    """
    title = f"demo: {casting.name}"
    order = TrialOrder(title, casting.version, casting.users, casting.unjudged)
    experiment_id = loop.start_trial(order)
    teller.line(f"experiment {experiment_id}")
    try:
        watch = _Watch(loop, experiment_id, loop.trial(experiment_id))
        with teller.progress() as show:
            tally, settled = asyncio.run(_play(watch, crowd, terms, casting, show))
    finally:
        loop.stop_trial(experiment_id, f"demo: {casting.name} ended without a decision")
    watch.state = loop.trial(experiment_id)
    trial = _trial(terms, casting, watch, tally, settled)
    teller.line(trial.outcome)
    return trial


async def _play(
    watch: _Watch, crowd: Crowd, terms: Terms, casting: Casting, show: Show
) -> tuple[Tally, float | None]:
    """The users' tally, and how long after the decision traffic and registry agreed."""
    budget = terms.budget
    tally = await crowd.until(
        watch.decided,
        users=ceil(casting.users * budget.slack),
        show=lambda step: show(_with_interval(step, watch.state)),
        patience_seconds=budget.decide_seconds,
    )
    ended = watch.state.ended_at
    if watch.state.running or ended is None:
        return tally, None
    after, settled = await asyncio.gather(
        crowd.gather(budget.after_users, lambda _: None),
        asyncio.to_thread(_settled, watch.loop, ended),
    )
    tally.add(after)
    return tally, settled


def _with_interval(step: Step, state: TrialState) -> Step:
    note = f"{state.users} heard"
    if state.delta is not None and state.ci_low is not None and state.ci_high is not None:
        note += f", {signed(state.delta)} [{signed(state.ci_low)}, {signed(state.ci_high)}]"
    return Step(step.label, step.done, step.total, f"{note} · {step.note}")


def _point(state: TrialState) -> Point | None:
    if state.delta is None or state.ci_low is None or state.ci_high is None:
        return None
    seconds = (state.ended_at or now()) - state.started_at
    return Point(state.users, seconds.total_seconds(), state.delta, state.ci_low, state.ci_high)


def _settled(loop: Loop, ended: datetime) -> float | None:
    """Seconds from the decision until traffic and registry agree; None: they did not in time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        if loop.champion().agreed:
            return (now() - ended).total_seconds()
        time.sleep(SETTLE_POLL_SECONDS)
    return None


def _trial(
    terms: Terms, casting: Casting, watch: _Watch, tally: Tally, settled: float | None
) -> Trial:
    state, loop = watch.state, watch.loop
    logged = {one.adapter: one for one in loop.answered(terms.user_prefix, state.started_at)}
    rollout = decided = stray = None
    candidate = state.arms[-1].adapter
    if casting.version is not None and candidate in logged:
        rollout = (logged[candidate].first_at - state.started_at).total_seconds()
    if state.ended_at is not None:
        decided = (state.ended_at - state.started_at).total_seconds()
        loser = _loser(state)
        if loser is not None and loser.adapter in logged:
            late = (logged[loser.adapter].last_at - state.ended_at).total_seconds()
            stray = max(late, 0.0)
    return Trial(
        name=casting.name,
        state=state,
        course=tuple(watch.course),
        tally=tally,
        rollout_seconds=rollout,
        decided_seconds=decided,
        settled_seconds=settled,
        stray_seconds=stray,
        champion=loop.champion(),
    )


def _loser(state: TrialState) -> ArmState | None:
    return {PROMOTED: state.arms[0], ROLLED_BACK: state.arms[-1]}.get(state.state)
