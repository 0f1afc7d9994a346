"""The product as the demo uses it: the train pipeline, experiments, promotions and lineage of the
installation in this home. Nothing is decided here; every figure is read from where it was kept."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from deploy.demo.answered import answered
from deploy.demo.readiness import problems_of, versions_of
from deploy.demo.stage import (
    Answered,
    ArmState,
    Chain,
    Champion,
    LoopFailed,
    Show,
    Step,
    Trained,
    TrainingOrder,
    TrialOrder,
    TrialState,
)
from evals.cases import load_cases
from evals.records import Answer, MetricResult
from evals.scorers import exact_match
from evals.verdicts import find_verdict
from gateway.database import Conflict
from gateway.errors import GatewayError
from gateway.request_log import LogUnavailable
from pipelines import experiment, promotion
from pipelines.champion import (
    CHALLENGER,
    CHAMPION,
    RUNNING,
    champion_name,
    champion_of,
    served_name_of,
)
from pipelines.drill import register_ruined
from pipelines.engines import services_for
from pipelines.installation import Installation
from pipelines.llm_spec import llm_spec
from pipelines.observations import Observations
from pipelines.passes import Outcome, run_pass
from pipelines.plan import Plan
from pipelines.registry import Registry
from pipelines.runs import latest
from pipelines.spec import Spec
from pipelines.tables import ExperimentRow, PromotionRow

ACTOR = "demo"
METRIC = "exact_match"
SETTLE_SECONDS, POLL_SECONDS = 20.0, 0.2
FAILURES = (GatewayError, LogUnavailable, RuntimeError, ValueError, OSError)


@contextmanager
def failing() -> Iterator[None]:
    """What the product refuses or cannot do, as the story hears of it."""
    try:
        yield
    except GatewayError as error:
        raise LoopFailed(error.message) from error
    except FAILURES as error:
        raise LoopFailed(str(error)) from error


class InstalledLoop:
    """`deploy.demo.stage.Loop` over one installation and one spec."""

    def __init__(self, installation: Installation, spec: Spec, chain: Callable[..., Chain]):
        self._installation = installation
        self._spec = spec
        self._chain = chain
        self._observations: dict[str, Observations] = {}

    def problems(self) -> Sequence[str]:
        """What stands in the way, each with what to do."""
        return problems_of(self._installation, self._spec) or self.under_way()

    def under_way(self) -> list[str]:
        """Trainings and experiments that would be in the way."""
        running = [row for row in latest(self._installation.database, self._spec.name, 1)
                   if row.state == "running"]  # fmt: skip
        found = [f"a run of {row.name} is under way: {row.run_id}" for row in running]
        tried = [row for row in experiment.latest(self._installation.database, self._spec.alias, 1)
                 if row.state == RUNNING]  # fmt: skip
        stop = "llmops experiment stop"
        found += [f"an experiment is under way: {stop} {row.experiment_id}" for row in tried]
        return found

    def thresholds(self) -> Mapping[str, str]:
        """Gate, experiment and training, as they will be used."""
        return thresholds_of(self._spec)

    def versions(self) -> Mapping[str, str]:
        """Versions of what runs."""
        return versions_of(self._installation, self._spec)

    def champion(self) -> Champion:
        """Who answers now, by the promotions, the split and MLflow."""
        spec, installation = self._spec, self._installation
        with failing():
            with installation.database.session() as session:
                found = champion_of(session, spec.alias)
            registered = Registry(installation.tracking_uri()).aliases(spec.name).get(CHAMPION)
        return Champion(found.version, champion_name(installation.database, spec.alias), registered)

    def return_to_base(self, reason: str) -> None:
        """Roll back until the base model answers; MLflow has followed at the end."""
        services = services_for(self._installation, self._spec.alias)
        with failing():
            while True:
                with self._installation.database.session() as session:
                    found = champion_of(session, self._spec.alias)
                if found.version is None or not found.can_go_back:
                    break
                order = promotion.Rollback(self._spec.alias, ACTOR, reason)
                asyncio.run(promotion.rollback(services, order))
            registry = Registry(self._installation.tracking_uri())
            promotion.follow_up(self._installation.database, registry)

    def train(self, order: TrainingOrder, show: Show) -> Trained:
        """One pass of the pipeline."""
        spec = self._ordered(order)

        def on_progress(stage: str, percent: int, what: str) -> None:
            show(Step(stage, percent, 100, what))

        with failing():
            outcome = run_pass(self._installation, spec, on_progress, experiment=False)
            return self._trained(spec, outcome)

    def register_ruined(self, version: str, reason: str) -> tuple[str, str]:
        """A spoilt copy of `version`, registered unjudged."""
        with failing():
            return register_ruined(self._installation, self._spec, version, reason)

    def start_trial(self, order: TrialOrder) -> str:
        """Start an experiment with the spec's plan."""
        metrics = self._installation.configuration.feedback.metrics
        users = max(order.maximum_users, 2 * self._spec.experiment.minimum_users)
        plan = self._spec.experiment.model_copy(update={"maximum_users": users})
        trial = experiment.Trial(
            alias=self._spec.alias,
            name=self._spec.name,
            version=order.version,
            plan=plan.settled(metrics),
            actor=ACTOR,
            unjudged=order.unjudged,
            approval=self._spec.approval,
        )
        with failing():
            services = services_for(self._installation, self._spec.alias)
            row = asyncio.run(experiment.start(services, trial))
        self._observations[row.experiment_id] = Observations(
            self._installation.database, self._installation.reader, row
        )
        return row.experiment_id

    def trial(self, experiment_id: str) -> TrialState:
        """How it stands: by its observations while it runs, by its verdict afterwards."""
        with failing():
            with self._installation.database.session() as session:
                row = experiment.find_experiment(session, experiment_id)
                verdict = find_verdict(session, row.verdict_id) if row.verdict_id else None
                moves = session.query(PromotionRow).filter_by(experiment_id=experiment_id).all()
            if verdict is None:
                finding = experiment.examine(row, self._observations[experiment_id])
                result = finding.result
                users = {arm: len(values) for arm, values in finding.observed.values.items()}
            else:
                result, users = verdict.metrics[0], dict(verdict.evidence["users"])
            return self._state(row, result, users, moves[0].promotion_id if moves else None)

    def stop_trial(self, experiment_id: str, reason: str) -> None:
        """Stop it if it runs."""
        with failing(), self._installation.database.session() as session:
            row = experiment.find_experiment(session, experiment_id)
        if row.state == RUNNING:
            with failing(), suppress(Conflict):  # the controller was faster
                experiment.stop(self._installation.database, experiment_id, reason, ACTOR)

    def answered(self, users: str, since: datetime) -> Sequence[Answered]:
        """By adapter, from the request log."""
        with failing():
            return answered(self._installation.reader, self._spec.alias, users, since)

    def chain(self, identifier: str, version: str) -> Chain:
        """Lineage and its check."""
        with failing():
            return self._chain(self._installation, self._spec.name, identifier, version)

    def _ordered(self, order: TrainingOrder) -> Spec:
        """The spec with an order's seed, time and number of held-out items."""
        spec = self._spec
        changed: dict[str, Any] = {
            "dataset": {**spec.dataset, "seed": order.seed, "since": order.since.isoformat()},
            "training": {**spec.training, "seed": order.seed},
        }
        if order.held_out is not None:
            changed["evaluation"] = {**spec.evaluation, "limit": order.held_out}
            changed["gate"] = tuple(
                one.model_copy(update={"minimum_n": min(one.minimum_n, order.held_out)})
                for one in spec.gate
            )
        return spec.model_copy(update=changed)

    def _trained(self, spec: Spec, outcome: Outcome) -> Trained:
        manifest = _read(outcome.folder / "dataset" / "manifest.json")
        metrics = _read(outcome.folder / "training" / "training.json")["metrics"]
        dropped = {f"dropped: {why}": count for why, count in manifest["dropped"].items() if count}
        files = {Path(name).stem: facts["rows"] for name, facts in manifest["files"].items()}
        result = next(one for one in outcome.verdict.metrics if one.name == METRIC)
        right = partial(_right, spec, outcome.folder / "evaluation")
        rollout = {"rollout": float(outcome.verdict.evidence["rollout_seconds"])}
        return Trained(
            run_id=outcome.run_id,
            dataset_id=outcome.dataset_id,
            training_id=outcome.training_id,
            version=outcome.version,
            adapter=outcome.served_name,
            rows={**files, **manifest["sources"], **dropped},
            exact_match=result,
            verdict=outcome.verdict,
            baseline=right("champion.jsonl"),
            candidate=right("candidate.jsonl"),
            losses=(metrics.get("first_loss"), metrics.get("last_loss")),
            seconds={**outcome.seconds, **rollout},
        )

    def _state(
        self,
        row: ExperimentRow,
        result: MetricResult,
        users: Mapping[str, int],
        promotion_id: str | None,
    ) -> TrialState:
        with self._installation.database.session() as session:
            versions = {arm["variant"]["adapter"]: None for arm in row.arms}
            known = {served_name_of(session, row.name, row.version): row.version}
        means = {CHAMPION: result.baseline, CHALLENGER: result.candidate}
        arms = tuple(
            ArmState(
                name=(name := arm["variant"]["name"]),
                version={**versions, **known}.get(arm["variant"]["adapter"]),
                adapter=arm["variant"]["adapter"],
                users=users.get(name, 0),
                mean=means[name],
            )
            for arm in row.arms
        )
        return TrialState(
            experiment_id=row.experiment_id,
            state=row.state,
            arms=arms,
            delta=result.delta,
            ci_low=result.ci_low,
            ci_high=result.ci_high,
            confidence=1 - Plan.model_validate(row.plan).alpha,
            message=row.message,
            verdict_id=row.verdict_id,
            promotion_id=promotion_id,
            started_at=row.started_at,
            ended_at=row.ended_at,
        )


def thresholds_of(spec: Spec) -> Mapping[str, str]:
    """Gate, experiment and training, as they will be used."""
    plan = spec.experiment
    training = ", ".join(f"{name} {value}" for name, value in spec.training.items())
    conditions = {
        f"gate: {one.metric}": f"{one.kind}, {one.direction}, margin {one.margin}"
        f"{' of the baseline' if one.relative else ''}, at least {one.minimum_n} pairs"
        for one in spec.gate
    }
    return {
        **conditions,
        "experiments": f"{plan.metric} per user, weight {plan.weight}, alpha {plan.alpha}, "
        f"margin {plan.margin}, at least {plan.minimum_users} users an arm",
        "training": training,
    }


def _right(spec: Spec, folder: Path, name: str) -> list[float]:
    """Exact match of the answers in a file, in the order of the cases."""
    asked = llm_spec(spec).evaluation
    cases = load_cases(asked.path)[: asked.limit]
    lines = (folder / name).read_bytes().splitlines()
    answers = {row["case_id"]: Answer(**row) for row in map(orjson.loads, lines)}
    scores = (exact_match(case, answers[case.case_id]) for case in cases)
    return [score.value or 0.0 for score in scores]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content
