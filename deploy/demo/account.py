"""The demo's account: what happened, measured, as records that the report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from deploy.demo.crowd import Tally
from deploy.demo.stage import Answered, Chain, Champion, Trained, TrialState
from deploy.demo.terms import Terms


@dataclass(frozen=True, slots=True)
class Expectation:
    """What should come out, said before; what was measured; whether that is it."""

    text: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Point:
    """An experiment's interval when `users` had been heard, `seconds` after its start."""

    users: int
    seconds: float
    delta: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trial:
    """An experiment of the demo, from its start to its decision.

    Attributes:
        name: `A/B`, `A/A` or `drill`.
        course: the interval as it went, one point for every number of users seen.
        tally: the users who came meanwhile.
        rollout_seconds: from the start to the first request in the log that the candidate answered;
            None where it never answered, or is the champion itself.
        decided_seconds: from the start to the decision; None: there was none.
        settled_seconds: from the decision until traffic and MLflow's alias agreed on the champion.
        stray_seconds: from the decision to the last request in the log that the arm which lost
            answered; 0: none came after it; None: no arm lost.
        champion: who answers after it.
    """

    name: str
    state: TrialState
    course: Sequence[Point]
    tally: Tally
    rollout_seconds: float | None
    decided_seconds: float | None
    settled_seconds: float | None
    stray_seconds: float | None
    champion: Champion

    @property
    def outcome(self) -> str:
        """What became of it, in a line."""
        state = self.state
        took = "" if self.decided_seconds is None else f" after {self.decided_seconds:.0f} s"
        why = f": {state.message}" if state.message else ""
        return f"{state.state} with {state.users} users heard{took}{why}"


@dataclass(slots=True)
class Act:
    """One act: its heading, how long it took and what was expected of it."""

    number: int
    title: str
    seconds: float = 0.0
    expectations: list[Expectation] = field(default_factory=list)


@dataclass(slots=True)
class Account:
    """Everything of one run of the demo, as far as it got.

    `began` is when the first act did; `ended` is why there was no last act, None if there was.
    """

    terms: Terms
    began: datetime
    machine: Mapping[str, str]
    acts: list[Act] = field(default_factory=list)
    before: Tally | None = None
    trained: Trained | None = None
    trials: list[Trial] = field(default_factory=list)
    chain: Chain | None = None
    logged: Sequence[Answered] = ()
    ended: str | None = None
    seconds: float = 0.0

    @property
    def tally(self) -> Tally:
        """All users of the run."""
        whole = Tally()
        for one in (self.before, *(trial.tally for trial in self.trials)):
            if one is not None:
                whole.add(one)
        return whole

    @property
    def expectations(self) -> list[Expectation]:
        """Those of all acts, in order."""
        return [one for act in self.acts for one in act.expectations]

    @property
    def as_expected(self) -> bool:
        """Whether it ran to its end and everything came as was said before."""
        return self.ended is None and all(one.met for one in self.expectations)
