"""What is fixed before the first flight is asked about: one frozen record, printed first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any

from deploy.demo.figures import percent
from pipelines.spec import Spec

SINCE = date(2013, 1, 1)  # the first day that is learnt from
MONTHS = tuple(date(2013, month, 1) for month in range(6, 13))
WORST_SLICE = "worst_slice_auc"


@dataclass(frozen=True, slots=True)
class FlightBudget:
    """How much is replayed, and how long is waited.

    Attributes:
        months: first days of the months that are replayed, in order.
        flights: asked about in each, drawn evenly.
        share: of all flights that are learnt from and compared on.
        search: trials of each algorithm in a training.
        ab_users: users heard at which an undecided experiment is held.
        least_rows: predictions below which a look decides nothing.
        slices: whether the gate looks at each carrier.
        minimum_n: rows that the gate wants, at most.
        decide_seconds: wait for the controller's decision after the month's last flight.
        total_seconds: the demo should end within that.
        at_once: requests under way at once.
    """

    months: tuple[date, ...] = MONTHS
    flights: int = 1500
    share: float = 0.3
    search: int = 2
    ab_users: int = 600
    least_rows: int = 500
    slices: bool = True
    minimum_n: int = 2000
    decide_seconds: float = 15.0
    total_seconds: float = 720.0
    at_once: int = 8


QUICK = FlightBudget(
    months=MONTHS[:2], flights=240, share=0.1, search=1, ab_users=100, least_rows=200,
    slices=False, minimum_n=500, total_seconds=600.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FlightTerms:
    """The frozen record. `thresholds` are those of gate and experiment, as they will be used."""

    alias: str
    seed: int
    budget: FlightBudget = field(default_factory=FlightBudget)
    thresholds: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> str:
        """What replays it, as options of the command."""
        return f"--seed {self.seed}" + (" --quick" if self.budget == QUICK else "")

    @property
    def user_prefix(self) -> str:
        """What the ids of this run's users begin with; a flight's number follows."""
        return f"flights-{self.seed}-"

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of everything in it, for people."""
        budget = self.budget
        first, last = budget.months[0], budget.months[-1]
        slices = "with" if budget.slices else "without"
        return [
            ("alias, seed", f"{self.alias}, {self.seed}"),
            ("first version", f"learnt from {SINCE:%B} to {_before(first):%B} 2013"),
            ("replayed", f"{first:%B} to {last:%B} 2013, {budget.flights} flights a month, drawn "
             "evenly, in the order of their departure"),
            ("rows for training and gate", f"{percent(budget.share, 1)} of all flights, "
             f"{slices} a look at each carrier"),
            ("trials", f"{budget.search} of each algorithm"),
            ("user", "the flight's number, such as UA1545: the unit of experiments"),
            ("label", "late, as feedback once it is known; a flight that never arrives has none"),
            ("experiment", f"the first version that a retraining makes is tried on the month that "
             f"follows, held at {budget.ab_users} users heard; later ones are promoted by the "
             "gate's verdict"),
            ("time", f"at most {budget.total_seconds:.0f} s"),
            *self.thresholds.items(),
        ]  # fmt: skip


def following(month: date) -> date:
    """The first day of the month after."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def start_of(day: date) -> datetime:
    """Its first moment, UTC."""
    return datetime.combine(day, time(), UTC)


def spec_until(spec: Spec, terms: FlightTerms, until: date, test_days: int | None = None) -> Spec:
    """The spec as it is trained at `until` with what is known then.

    `test_days`: the last days, which candidate and champion are compared on; the spec's own by
    default.
    """
    budget = terms.budget
    dataset: dict[str, Any] = {
        **spec.dataset, "since": SINCE.isoformat(), "until": until.isoformat(),
        "sample": budget.share,
    }  # fmt: skip
    if test_days is not None:
        dataset["test_days"] = test_days
    evaluation = spec.evaluation if budget.slices else {**spec.evaluation, "slices": []}
    gate = tuple(
        one.model_copy(update={"minimum_n": min(one.minimum_n, budget.minimum_n)})
        for one in spec.gate
        if budget.slices or one.metric != WORST_SLICE
    )
    changed = {
        "dataset": dataset,
        "training": {**spec.training, "search": budget.search, "seed": terms.seed},
        "evaluation": evaluation,
        "gate": gate,
    }
    return spec.model_copy(update=changed)


def _before(month: date) -> date:
    return date(month.year, month.month - 1, 1)
