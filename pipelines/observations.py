"""What an experiment's users said: feedback, joined with the log's requests, one value for a user.

Invariants: a unit (the user, else the episode, else the key, within its tenant: what was assigned)
gives one observation, the mean of its first `feedback_per_user` pieces of feedback on requests of
this experiment, and later ones do not change it. For guardrails its observation is its first
request that ended. Feedback only ever meets requests of its own tenant. A unit that was seen in
both arms is left out, and counted. Where the plan lets feedback mature, it is taken in the order of
its requests, so that a new object that reads all of it takes the same.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from gateway.database import Database, now
from gateway.feedback import FeedbackRow
from gateway.request_log import LogReader
from pipelines import guardrails
from pipelines.losses import probability_of
from pipelines.plan import Plan
from pipelines.tables import ExperimentRow

OVERLAP = timedelta(seconds=60)  # a row may be committed later than one with a higher id
WAIT = timedelta(minutes=15)  # a request is in the log when it has ended
WAITING_AT_MOST = 10_000
IDS_AT_ONCE = 5_000
COUNT_SHARE = 0.1  # of the time may be spent on counting
ENDED = "epoch_ms(ts) + coalesce(latency_ms, 0)"
UNIT = """coalesce(nullif("user", ''), nullif(episode_id, ''), key_id)"""

Unit = tuple[str, str]  # tenant, and user, episode or key
Values = dict[Unit, list[float]]


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known of an experiment so far.

    Attributes:
        values: the complete users' values, by arm: 0 (bad) to 1 (good).
        assigned: users with a request, by arm.
        in_both: users left out because they were seen in both arms.
        answered: users with any feedback, complete or not.
        unusable: pieces of feedback whose value does not fit the plan.
        late: pieces of feedback that came too late to count (`matures_hours`).
        guarded: of each guardrail's metric, values by arm: 0 (good) to 1 (bad).
    """

    values: Mapping[str, Sequence[float]]
    assigned: Mapping[str, int]
    in_both: int = 0
    answered: int = 0
    unusable: int = 0
    late: int = 0
    guarded: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def users(self) -> int:
        """Users whose observation is complete, in all arms."""
        return sum(len(values) for values in self.values.values())


@dataclass(frozen=True, slots=True)
class _Piece:
    """Feedback whose request was not found yet. `ours`: `request` is our own id of it."""

    feedback_id: str
    tenant: str
    request: str
    ours: bool
    value: Any
    created_at: datetime


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that feedback is on."""

    experiment: str | None
    arm: str | None
    unit: str
    at: datetime
    probability: float | None


class Observations:
    """An experiment's observations in memory, brought up to date by `refresh`.

    Only feedback that came since the last time is read; a new object reads all of it and finds the
    same.
    """

    def __init__(self, database: Database, reader: LogReader, experiment: ExperimentRow):
        self._database = database
        self._reader = reader
        self._experiment_id = experiment.experiment_id
        self._plan = Plan.model_validate(experiment.plan)
        self._started_at = experiment.started_at
        self._units: dict[str, Values] = {arm["variant"]["name"]: {} for arm in experiment.arms}
        self._waiting: dict[str, _Piece] = {}
        self._maturing: dict[str, tuple[_Piece, _Asked]] = {}
        self._seen: dict[str, datetime] = {}
        self._read_to = experiment.started_at
        self._assigned: dict[str, int] = {}
        self._mixed: set[Unit] = set()
        self._guarded: dict[str, dict[Unit, tuple[str, float | None]]] = {
            one.metric: {} for one in self._plan.guardrails
        }
        self._count_at = float("-inf")
        self._unusable = 0
        self._late = 0

    def refresh(self, *, count: bool = False) -> Observed:
        """Read what is new. Users with a request are counted now with `count`, else as often as
        takes no more than a tenth of the time.

        Raises what the database and the log raise; what was not read then is read next time.
        """
        self._read_feedback()
        if self._waiting:
            self._join()
        self._take_mature()
        if count or time.monotonic() >= self._count_at:
            began = time.monotonic()
            self._count_assigned()
            self._count_at = time.monotonic() + (time.monotonic() - began) / COUNT_SHARE
        return self._observed()

    def _read_feedback(self) -> None:
        query = (
            select(FeedbackRow)
            .where(
                FeedbackRow.feedback_id >= _first_id(self._read_to - OVERLAP),
                FeedbackRow.metric_name == self._plan.metric,
            )
            .order_by(FeedbackRow.feedback_id)
        )
        with self._database.session() as session:
            rows = list(session.scalars(query))
        for row in rows:
            request = row.request_id or row.reference
            if request is None or row.feedback_id in self._seen:
                continue
            ours = row.request_id is not None
            piece = _Piece(row.feedback_id, row.tenant, request, ours, row.value, row.created_at)
            self._seen[piece.feedback_id] = piece.created_at
            self._waiting[piece.feedback_id] = piece
            self._read_to = max(self._read_to, piece.created_at)
        oldest = self._read_to - 2 * OVERLAP
        self._seen = {key: at for key, at in self._seen.items() if at >= oldest}

    def _join(self) -> None:
        """Give what waits to the units of its requests, oldest first; drop what is not ours."""
        pieces = sorted(self._waiting.values(), key=lambda piece: piece.feedback_id)
        found = self._requests("request_id", {one.request for one in pieces if one.ours})
        found |= self._requests("upstream_id", {one.request for one in pieces if not one.ours})
        for piece in pieces:
            asked = found.get((piece.tenant, piece.request))
            if asked is not None:
                del self._waiting[piece.feedback_id]
                if asked.experiment == self._experiment_id and asked.arm in self._units:
                    self._heard(piece, asked)
        self._give_up()

    def _heard(self, piece: _Piece, asked: _Asked) -> None:
        if not self._plan.in_time(asked.at, piece.created_at):
            self._late += 1
        elif self._plan.matures_hours:
            self._maturing[piece.feedback_id] = (piece, asked)
        else:
            self._take(piece, asked)

    def _take_mature(self) -> None:
        """Take what is old enough. Feedback may be read a little later than it was given."""
        until = now() - OVERLAP
        ripe = [one for one in self._maturing.values() if self._plan.matures_at(one[1].at) <= until]
        for piece, asked in sorted(ripe, key=lambda one: (one[1].at, one[0].feedback_id)):
            del self._maturing[piece.feedback_id]
            self._take(piece, asked)

    def _take(self, piece: _Piece, asked: _Asked) -> None:
        assert asked.arm is not None
        answers = self._units[asked.arm].setdefault((piece.tenant, asked.unit), [])
        scaled = self._plan.scaled(piece.value, asked.probability)
        if scaled is None:
            self._unusable += 1
        elif len(answers) < self._plan.feedback_per_user:
            answers.append(scaled)

    def _give_up(self) -> None:
        """Forget feedback on requests that never came to the log."""
        oldest = now() - WAIT
        kept = [key for key, piece in self._waiting.items() if piece.created_at >= oldest]
        self._waiting = {key: self._waiting[key] for key in sorted(kept)[-WAITING_AT_MOST:]}

    def _requests(self, column: str, ids: Iterable[str]) -> dict[tuple[str, str], _Asked]:
        """Requests by their tenant and their id in `column`."""
        found = {}
        listed, answers = sorted(ids), self._plan.loss is not None
        said = "response" if answers else "NULL"
        for start in range(0, len(listed), IDS_AT_ONCE):
            wanted = listed[start : start + IDS_AT_ONCE]
            rows = self._reader.select(
                f"SELECT tenant, {column}, experiment, variant, {UNIT}, ts, {said} FROM requests"
                f" WHERE {column} IN (SELECT unnest(?::VARCHAR[])) AND {column} BETWEEN ? AND ?"
                " AND ts >= make_timestamptz(?)",
                [wanted, wanted[0], wanted[-1], _micros(self._started_at - WAIT)],
                bodies=answers,
            ).rows
            for tenant, name, experiment, arm, unit, asked_at, response in rows:
                probability = probability_of(response) if answers else None
                found[tenant, name] = _Asked(experiment, arm, unit, asked_at, probability)
        return found

    def _count_assigned(self) -> None:
        rows = self._reader.select(
            f"SELECT tenant, {UNIT} AS unit, min(variant), max(variant),"
            f" arg_min(request_id, ({ENDED}, request_id)) FROM requests"
            " WHERE experiment = ? AND ts >= make_timestamptz(?) GROUP BY tenant, unit",
            [self._experiment_id, _micros(self._started_at - OVERLAP)],
        ).rows
        self._mixed = {(tenant, unit) for tenant, unit, first, last, _ in rows if first != last}
        arms = [first for _, _, first, last, _ in rows if first == last]
        self._assigned = {arm: arms.count(arm) for arm in self._units}
        if self._guarded:
            self._guard({request: ((tenant, unit), arm) for tenant, unit, arm, _, request in rows})

    def _guard(self, firsts: Mapping[str, tuple[Unit, str]]) -> None:
        """Take in the requests of units that were not heard of before, by their ids."""
        known = next(iter(self._guarded.values()))
        fresh = sorted(request for request, (unit, _) in firsts.items() if unit not in known)
        columns = ", ".join(guardrails.COLUMNS)
        for start in range(0, len(fresh), IDS_AT_ONCE):
            wanted = fresh[start : start + IDS_AT_ONCE]
            rows = self._reader.select(
                f"SELECT request_id, {columns} FROM requests"
                " WHERE request_id IN (SELECT unnest(?::VARCHAR[])) AND request_id BETWEEN ? AND ?"
                " AND ts >= make_timestamptz(?)",
                [wanted, wanted[0], wanted[-1], _micros(self._started_at - OVERLAP)],
                bodies=True,
            ).rows
            for request, *values in rows:
                row = dict(zip(guardrails.COLUMNS, values, strict=True))
                unit, arm = firsts[request]
                for one in self._plan.guardrails:
                    self._guarded[one.metric][unit] = arm, one.scaled(row)

    def _observed(self) -> Observed:
        in_both = self._mixed | _in_several(self._units.values())
        needed = self._plan.feedback_per_user
        values = {
            arm: [
                sum(answers) / needed
                for unit, answers in units.items()
                if len(answers) == needed and unit not in in_both
            ]
            for arm, units in self._units.items()
        }
        heard = {unit for units in self._units.values() for unit, said in units.items() if said}
        return Observed(
            values,
            self._assigned,
            in_both=len(in_both),
            answered=len(heard),
            unusable=self._unusable,
            late=self._late,
            guarded=self._guards(in_both),
        )

    def _guards(self, in_both: Collection[Unit]) -> dict[str, dict[str, list[float]]]:
        guarded: dict[str, dict[str, list[float]]] = {}
        for metric, units in self._guarded.items():
            by_arm = guarded[metric] = {arm: [] for arm in self._units}
            for unit, (arm, value) in units.items():
                if value is not None and unit not in in_both and arm in by_arm:
                    by_arm[arm].append(value)
        return guarded


def _in_several(arms: Iterable[Mapping[Unit, list[float]]]) -> set[Unit]:
    seen: set[Unit] = set()
    twice: set[Unit] = set()
    for units in arms:
        twice |= seen & units.keys()
        seen |= units.keys()
    return twice


def _first_id(moment: datetime) -> str:
    """The lowest UUIDv7 of `moment`: ids are compared as text."""
    digits = f"{_micros(moment) // 1000:012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)
