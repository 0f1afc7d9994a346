"""Rows and requests as the rest of the project leaves them, for experiments and promotions."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import uuid_utils
from sqlalchemy import select, text

from evals.records import Decision, Verdict
from evals.verdicts import add_verdict
from gateway.audit import AuditFilter, entries
from gateway.configuration import Metric
from gateway.database import Database, now
from gateway.feedback import FeedbackStore, NewFeedback
from gateway.request_log import LogReader
from gateway.splits import find_split
from pipelines.champion import Champion, Services, champion_of
from pipelines.experiment import Trial, start
from pipelines.plan import Plan
from pipelines.tables import (
    DatasetRow,
    ExperimentRow,
    ModelVersionRow,
    PromotionRow,
    TrainingRow,
)
from tests.spooled_requests import final, record, write_segment

ALIAS = "extractor"
METRICS = {
    "helpful": Metric(type="boolean"),
    "rating": Metric(type="float", minimum=1, maximum=5),
    "seconds": Metric(type="float", minimum=0, maximum=10, optimize="min"),
    "open": Metric(type="float", minimum=0),
    "tone": Metric(type="categorical", categories=("warm", "cold")),
    "solved": Metric(type="boolean", level="episode"),
}


def adapter_name(version: str) -> str:
    """The served name of a version's adapter."""
    return f"{ALIAS}-{hashlib.sha256(version.encode()).hexdigest()[:12]}"


def plan(metric: str = "helpful", **changes: Any) -> Plan:
    """A settled plan that decides soon."""
    given: dict[str, Any] = {"metric": metric, "minimum_users": 5, "maximum_users": 400}
    return Plan.model_validate(given | changes).settled(METRICS)


def seed_version(
    database: Database, version: str, *, decision: Decision | None = Decision.PROMOTE
) -> ModelVersionRow:
    """A registered version with its data set, its training and its verdict (None: unjudged)."""
    adapter = adapter_name(version)
    verdict = None
    if decision is not None:
        verdict = Verdict(
            verdict_id=str(uuid_utils.uuid7()),
            subject=adapter,
            baseline="base",
            decision=decision,
            metrics=(),
            reasons=("so it was measured",),
            evidence={},
            created_at=now(),
        )
    dataset_id, training_id = f"{version:0>32}", f"{version:a>32}"
    with database.transaction() as session:
        if verdict is not None:
            add_verdict(session, verdict)
        session.add(DatasetRow(dataset_id=dataset_id, name=ALIAS, manifest={}, created_at=now()))
        session.flush()
        training = TrainingRow(
            training_id=training_id,
            name=ALIAS,
            kind="llm",
            dataset_id=dataset_id,
            base_model="base-model",
            base_digest="b" * 64,
            served_name=adapter,
            digest="d" * 64,
            path=f"/adapters/{adapter}",
            configuration={},
            metrics={},
            created_at=now(),
        )
        session.add(training)
        session.flush()
        row = ModelVersionRow(
            name=ALIAS,
            version=version,
            training_id=training_id,
            verdict_id=None if verdict is None else verdict.verdict_id,
            served_name=adapter,
            path=f"/adapters/{adapter}",
            created_at=now(),
        )
        session.add(row)
    return row


@dataclass(slots=True)
class State:
    """What the state database holds of the alias, read at once."""

    champion: Champion
    split: Any
    experiments: list[ExperimentRow]
    promotions: list[PromotionRow]
    actions: list[str]

    def arms(self) -> dict[str, str | None]:
        """Adapters by the names of the split's arms."""
        arms = () if self.split is None else self.split.arms
        return {arm.variant.name: arm.variant.adapter for arm in arms}


def state_of(database: Database) -> State:
    """Everything that a move of the champion touches; actions oldest first."""
    with database.session() as session:
        experiments = select(ExperimentRow).order_by(ExperimentRow.experiment_id)
        promotions = select(PromotionRow).order_by(PromotionRow.promotion_id)
        listed = entries(session, AuditFilter(limit=1000))
        return State(
            champion=champion_of(session, ALIAS),
            split=find_split(session, ALIAS),
            experiments=list(session.scalars(experiments)),
            promotions=list(session.scalars(promotions)),
            actions=[entry.change.action for entry in reversed(listed)],
        )


@dataclass(slots=True)
class Traffic:
    """Requests in a real spool, and feedback on them."""

    home: Path
    database: Database
    reader: LogReader = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.reader = LogReader(self.home / "spool", str(self.home / "log" / "requests"))

    def request(self, running: ExperimentRow | None, user: str | None, **fields: Any) -> str:
        """One request, in the arm that the split gives its user; returns its id."""
        given: dict[str, Any] = {"user": user, "tenant": "acme", "model": ALIAS, "key_id": "key-1"}
        given |= fields
        if running is not None:
            unit = given["user"] or given.get("episode_id") or given["key_id"]
            given.setdefault("experiment", running.experiment_id)
            given.setdefault("variant", self.arm_of(running, unit, given["tenant"]))
        one = record(**given)
        write_segment(self.home / "spool", final(one))
        return one.request_id

    def arm_of(self, experiment: ExperimentRow, unit: str, tenant: str = "acme") -> str:
        """The arm that the running split gives `unit`."""
        with self.database.session() as session:
            split = find_split(session, ALIAS)
        assert split is not None and split.experiment_id == experiment.experiment_id
        return split.choose(tenant, unit).name

    def feedback(self, reference: str, value: Any, metric: str = "helpful", **fields: Any) -> str:
        """One piece of feedback, through the store."""
        given: dict[str, Any] = {"tenant": "acme", "key_id": "key-1"}
        store = FeedbackStore(self.database, METRICS)
        return store.add(
            NewFeedback(reference=reference, metric_name=metric, value=value, **(given | fields))
        )

    def users(
        self, experiment: ExperimentRow, count: int, rates: dict[str, float], first: int = 0
    ) -> None:
        """Users with a request each; of an arm's users the first share of `rates` is content."""
        requests: dict[str, list[str]] = {arm: [] for arm in rates}
        records = []
        with self.database.session() as session:
            split = find_split(session, ALIAS)
        assert split is not None
        for number in range(first, first + count):
            user = f"user-{number}"
            arm = split.choose("acme", user).name
            one = record(
                user=user,
                tenant="acme",
                model=ALIAS,
                experiment=experiment.experiment_id,
                variant=arm,
            )
            records.append(final(one))
            requests[arm].append(one.request_id)
        write_segment(self.home / "spool", *records)
        for arm, ids in requests.items():
            content = round(rates[arm] * len(ids))
            for position, request_id in enumerate(ids):
                self.feedback(request_id, position < content)


@dataclass(slots=True)
class FakeRegistry:
    """Aliases as MLflow would keep them; `failure` is raised while it is set."""

    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    failure: Exception | None = None
    calls: int = 0

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        self.aliases.pop((name, alias), None)
        if version is not None:
            self.aliases[name, alias] = version

    def of(self, name: str = ALIAS) -> dict[str, str]:
        """Versions by the aliases of a model."""
        return {alias: version for (model, alias), version in self.aliases.items() if model == name}


async def begin(services: Services, version: str | None, **changes: Any) -> ExperimentRow:
    """Start an experiment on the alias."""
    given: dict[str, Any] = {"plan": plan(), "actor": "anna"} | changes
    return await start(services, Trial(alias=ALIAS, name=ALIAS, version=version, **given))


def backdate(database: Database, experiment: ExperimentRow, started_at: datetime) -> None:
    """Let an experiment have begun at another time."""
    with database.transaction() as session:
        session.get_one(ExperimentRow, experiment.experiment_id).started_at = started_at
    experiment.started_at = started_at


def refuse_writes(database: Database, table: str) -> None:
    """Let the database refuse every write to `table`."""
    if database.engine.dialect.name == "sqlite":
        statements = [
            f"CREATE TRIGGER no_{when} BEFORE {when} ON {table} "
            "BEGIN SELECT RAISE(ABORT, 'refused for the test'); END"
            for when in ("INSERT", "UPDATE")
        ]
    else:
        statements = [
            "CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'refused for the test'; END$$",
            f"CREATE TRIGGER no_write BEFORE INSERT OR UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_it()",
        ]
    with database.connection() as connection:
        for statement in statements:
            connection.execute(text(statement))
