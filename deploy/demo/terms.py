"""What is fixed before the demo's first request: one frozen record, printed first and digested.

Nothing that comes later changes it; the report repeats it with its digest.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import orjson

from deploy.demo.figures import percent
from deploy.demo.users import Rule


@dataclass(frozen=True, slots=True)
class Budget:
    """How many users come, and how long is waited.

    Attributes:
        before_users: users of the base model, whose feedback becomes the data set.
        held_out: held-out items that base and candidate are both asked; None: all.
        ab_users, aa_users, drill_users: users heard at which an undecided experiment is held.
        stray_seconds: after a decision, the loser may answer for that long.
        slack: users that come at most, as a multiple of those: the silent are not heard.
        after_users: users that come right after a decision, to see whom they are answered by.
        decide_seconds: wait for the controller's decision after the last of them.
        total_seconds: the demo should end within that.
        at_once: requests under way at once.
    """

    before_users: int = 240
    held_out: int | None = None
    ab_users: int = 400
    aa_users: int = 80
    drill_users: int = 120
    after_users: int = 8
    stray_seconds: float = 2.0
    slack: float = 2.2
    decide_seconds: float = 30.0
    total_seconds: float = 900.0
    at_once: int = 16


QUICK = Budget(
    before_users=140, held_out=96, ab_users=240, aa_users=40, drill_users=80, decide_seconds=20.0
)


@dataclass(frozen=True, slots=True)
class Terms:
    """The frozen record.

    Attributes:
        gain: what the lower bound of a study's paired interval must be above.
        thresholds: those of gate, experiment and training, as the loop will use them.
    """

    alias: str
    seed: int
    rule: Rule = field(default_factory=Rule)
    budget: Budget = field(default_factory=Budget)
    gain: float = 0.20
    thresholds: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the record, 16 hex digits."""
        canonical = orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()[:16]

    @property
    def options(self) -> str:
        """What replays it, as options of the command."""
        return f"--seed {self.seed}" + (" --quick" if self.budget == QUICK else "")

    @property
    def user_prefix(self) -> str:
        """What the ids of this run's users begin with."""
        return f"demo-{self.seed}-u"

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of everything in it, for people."""
        rule, budget = self.rule, self.budget
        held_out = "all" if budget.held_out is None else str(budget.held_out)
        return [
            ("alias, seed", f"{self.alias}, {self.seed}"),
            ("a reply is right", "if its JSON equals the record that the user wrote about"),
            ("users see", "the reply's text, nothing else"),
            ("noise", f"{percent(rule.noise, 1)} of the judgements are flipped"),
            ("silence", f"{percent(rule.silence, 1)} of the requests get no feedback"),
            ("corrections", f"with {percent(rule.corrects, 1)} of the judgements `not helpful`"),
            ("coming back", f"{percent(rule.returns, 1)} of the users, once"),
            ("before", f"{budget.before_users} users"),
            ("held-out items", held_out),
            ("A/B, A/A, drill", f"held at {budget.ab_users}, {budget.aa_users}, "
             f"{budget.drill_users} users heard, if undecided"),
            ("after a decision", f"{budget.after_users} more users; the loser answers "
             f"none of them from {budget.stray_seconds:.0f} s on"),
            ("at once", f"{budget.at_once} requests"),
            ("time", f"at most {budget.total_seconds:.0f} s"),
            *self.thresholds.items(),
        ]  # fmt: skip
