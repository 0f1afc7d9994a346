"""The account of a replay: what happened in each month, as records that the report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from deploy.demo.account import Act, Expectation
from deploy.demo.stage import Answered, Chain, TrialState
from deploy.demo.tabular_policies import Scored
from deploy.demo.tabular_replay import Replayed
from deploy.demo.tabular_terms import FlightTerms
from evals.records import MetricResult, Verdict
from pipelines.passes import Outcome

FEATURES = ("feature.", "missing.")  # what their signals' names begin with
SHOWN = 3


@dataclass(slots=True)
class Month:
    """One month of the replay.

    Attributes:
        champion: who answered at its start; `answered_by`: predictions by served name.
        differing: answers whose features are not those of the training join.
        compared: by policy, AUC and Brier score of it (baseline) and of what was served.
        trial: the experiment of this month, if there was one.
        look: the watch's verdict after its end.
        started: whether the trigger started a training for it.
        retrained: that training; `then` is what became of its version.
        seconds: of the replay, the look, the training and the other policies.
    """

    first: date
    champion: str
    replayed: Replayed
    answered_by: Mapping[str, int] = field(default_factory=dict)
    differing: int = 0
    scored: Scored | None = None
    compared: Mapping[str, Mapping[str, MetricResult]] = field(default_factory=dict)
    trial: TrialState | None = None
    look: Verdict | None = None
    started: bool = False
    retrained: Outcome | None = None
    then: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as `June`."""
        return f"{self.first:%B}"

    @property
    def alerted(self) -> bool:
        """Whether the look found something."""
        return self.look is not None and self.look.decision.value == "alert"

    @property
    def drifted(self) -> Sequence[str]:
        """The signals and service levels that the look found changed or broken."""
        if self.look is None:
            return ()
        return [metric.name for metric in self.look.metrics if metric.passed is False]

    @property
    def drift_told(self) -> str:
        """The same in a few words: features are counted, the rest is named."""
        names = self.drifted
        others = [name for name in names if not name.startswith(FEATURES)]
        features = len(names) - len(others)
        said = [f"{features} feature{'s' if features > 1 else ''}"] if features else []
        return ", ".join([*said, *others]) or "nothing"


@dataclass(slots=True)
class FlightAccount:
    """Everything of one run, as far as it got. `ended` is why there was no last act."""

    terms: FlightTerms
    began: datetime
    machine: Mapping[str, str]
    acts: list[Act] = field(default_factory=list)
    snapshot_id: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    first: Outcome | None = None
    months: list[Month] = field(default_factory=list)
    rest: Replayed = field(default_factory=Replayed)
    overall: Mapping[str, Mapping[str, MetricResult]] = field(default_factory=dict)
    chain: Chain | None = None
    promotion_id: str = ""
    logged: Sequence[Answered] = ()
    ended: str | None = None
    seconds: float = 0.0

    @property
    def replays(self) -> list[Replayed]:
        """Of all months, and the labels after the last."""
        return [*(month.replayed for month in self.months), self.rest]

    @property
    def expectations(self) -> list[Expectation]:
        """Those of all acts, in order."""
        return [one for act in self.acts for one in act.expectations]

    @property
    def as_expected(self) -> bool:
        """Whether it ran to its end and everything came as was said before."""
        return self.ended is None and all(one.met for one in self.expectations)
