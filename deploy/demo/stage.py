"""What the story needs of the loop, as a contract, and the records that pass between them.

The story starts users, waits and compares; everything that trains, decides or moves traffic is the
product's own and stays behind `Loop`. Every figure in these records is measured, or read from SQL,
the request log or MLflow. Methods block, may be called from any thread, and raise `LoopFailed`
where the product refuses or fails; none of them decides anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from evals.records import Decision, MetricResult, Verdict

RUNNING, PROMOTED, HELD, ROLLED_BACK = "running", "promoted", "held", "rolled_back"
STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Step:
    """How far something is. `total` None: nobody knows yet how much there is to do."""

    label: str
    done: int
    total: int | None
    note: str = ""


Show = Callable[[Step], None]


class LoopFailed(RuntimeError):
    """The product refused or could not do what was asked; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Champion:
    """Who answers an alias, by the traffic and by MLflow; None is the plain base model.

    Attributes:
        version, adapter: what the split in the state database sends everybody (or, in an
            experiment, the champion's arm) to.
        registered: the version that MLflow's alias `champion` names.
    """

    version: str | None
    adapter: str | None
    registered: str | None

    @property
    def agreed(self) -> bool:
        """Whether traffic and registry say the same."""
        return self.version == self.registered

    @property
    def name(self) -> str:
        """For people."""
        return "base" if self.version is None else f"version {self.version}"


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """A pass of the train pipeline: dataset → train → evaluate → gate → register → roll out.

    Attributes:
        seed: of split and training.
        since: feedback given from then on is used.
        held_out: how many of the held-out items are asked; None: all.
    """

    seed: int
    since: datetime
    held_out: int | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished pass.

    Attributes:
        version, adapter: what was registered; None where the gate did not let it.
        rows: rows of the data set by part and source, such as `train`, `validation`,
            `demonstration`, `approved`, and what was dropped, as `dropped: reason`.
        exact_match: the held-out comparison of candidate and base, paired; it is in the verdict.
        baseline, candidate: exact match (0 or 1) of each held-out item, in the items' order.
        losses: first and last training loss; None where a resumed training had no step left.
        seconds: of each stage, by its name; `rollout` among them.
    """

    run_id: str
    dataset_id: str
    training_id: str
    version: str | None
    adapter: str
    rows: Mapping[str, int]
    exact_match: MetricResult
    verdict: Verdict
    baseline: Sequence[float] = field(repr=False)
    candidate: Sequence[float] = field(repr=False)
    losses: tuple[float | None, float | None]
    seconds: Mapping[str, float]

    @property
    def promotable(self) -> bool:
        """Whether the gate let it through."""
        return self.verdict.decision is Decision.PROMOTE and self.version is not None


@dataclass(frozen=True, slots=True)
class TrialOrder:
    """An experiment on live traffic, sticky by user, in which the controller decides.

    Attributes:
        title: for the audit trail, such as `demo: A/B`.
        version: the candidate's; None: both arms are the champion (A/A).
        maximum_users: with this many users heard, an undecided experiment ends as held.
        unjudged: why a candidate without a passing verdict is tried all the same; None: it is not.
    """

    title: str
    version: str | None
    maximum_users: int
    unjudged: str | None = None


@dataclass(frozen=True, slots=True)
class ArmState:
    """What an arm has so far: users with an outcome, and the mean of their own means."""

    name: str
    version: str | None
    adapter: str | None
    users: int
    mean: float | None


@dataclass(frozen=True, slots=True)
class TrialState:
    """An experiment as it stands; the first arm is the champion's.

    Attributes:
        state: running, promoted, held, rolled_back or stopped.
        delta, ci_low, ci_high: second arm minus first, and its always-valid interval at
            `confidence`; None where there is none yet.
        message: why it ended, in the controller's words.
        promotion_id: the move that it led to, or None.
    """

    experiment_id: str
    state: str
    arms: tuple[ArmState, ...]
    delta: float | None
    ci_low: float | None
    ci_high: float | None
    confidence: float
    message: str | None
    verdict_id: str | None
    promotion_id: str | None
    started_at: datetime
    ended_at: datetime | None

    @property
    def running(self) -> bool:
        """Whether it is undecided."""
        return self.state == RUNNING

    @property
    def users(self) -> int:
        """Users with an outcome, in all arms."""
        return sum(arm.users for arm in self.arms)


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests in the log that one variant answered: `deploy.demo.answered` reads them."""

    adapter: str | None
    requests: int
    failed: int
    users: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Chain:
    """What `llmops lineage` shows of an id, and what `llmops lineage check` found of a version."""

    text: str
    ids: frozenset[str]
    complete: bool
    check: str


class Loop(Protocol):
    """The product, as the demo uses it, for one alias."""

    def problems(self) -> Sequence[str]:
        """What stands in the way of a demo, each with what to do: the gateway or MLflow away, no
        controller, the alias not configured, an experiment or a training under way. Empty: none.
        """

    def thresholds(self) -> Mapping[str, str]:
        """Every threshold of gate and experiment, and the training's configuration: name to value,
        as they will be used. Read before anything runs; the story does not touch them.
        """

    def versions(self) -> Mapping[str, str]:
        """Versions of what runs: engine, MLflow, PEFT, the base model and its digest, commit."""

    def champion(self) -> Champion:
        """Who answers now."""

    def return_to_base(self, reason: str) -> None:
        """Roll the champion back to the plain base model, with an audit row; waits for MLflow."""

    def train(self, order: TrainingOrder, show: Show) -> Trained:
        """One pass of the pipeline, in this thread; `show` hears of every stage's progress."""

    def register_ruined(self, version: str, reason: str) -> tuple[str, str]:
        """Register a copy of `version` with its weights spoilt, unjudged for `reason`.

        Returns its version and the name it is served by.
        """

    def start_trial(self, order: TrialOrder) -> str:
        """Start an experiment; returns its id. The controller rolls the adapter out and decides."""

    def trial(self, experiment_id: str) -> TrialState:
        """How it stands, by SQL and the controller's own statistics."""

    def stop_trial(self, experiment_id: str, reason: str) -> None:
        """Stop it without a winner: the champion answers everybody. Nothing if it has ended."""

    def answered(self, users: str, since: datetime) -> Sequence[Answered]:
        """The log's requests on the alias since then of users whose id starts with `users`, by the
        adapter that answered.
        """

    def chain(self, identifier: str, version: str) -> Chain:
        """The lineage of `identifier`, and the check of model version `version`."""
