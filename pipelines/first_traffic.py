"""What a version that was just registered gets: an experiment by its spec's plan or, where nothing
answers the alias yet, all of the traffic."""

import asyncio
from dataclasses import dataclass

from gateway.database import Conflict
from pipelines.approval import MANUAL, Request, ask
from pipelines.champion import champion_of, find_version, hold, running_experiment
from pipelines.engines import services_for
from pipelines.experiment import Trial, start
from pipelines.installation import Installation
from pipelines.lifecycle import kind_of
from pipelines.promotion import Promotion, promote
from pipelines.spec import Spec

ACTOR = "pipeline"
FIRST = "the first version: nothing answered before, and it is better than a guess"


@dataclass(frozen=True, slots=True)
class FirstTraffic:
    """What it came to: one of these; none where it is the champion, or none was asked for."""

    version: str
    experiment_id: str | None = None
    promotion_id: str | None = None
    approval_id: str | None = None

    @property
    def told(self) -> str:
        """In words."""
        if self.experiment_id is not None:
            return f"experiment {self.experiment_id}"
        if self.promotion_id is not None:
            return f"promotion {self.promotion_id}: {FIRST}"
        if self.approval_id is not None:
            return f"approval {self.approval_id} is asked for: {FIRST}"
        return f"version {self.version}: nothing to begin"


def give_traffic(installation: Installation, spec: Spec, version: str) -> FirstTraffic:
    """Try a version on live traffic as its spec says, or promote it where nothing answers yet; by
    `approval: manual`, ask whether it may be.

    Again finds what was begun.

    Raises:
        ConfigurationError: the plan rests on a metric that is not declared.
        Conflict: another experiment is under way, or another model's version answers the alias.
        RolloutFailed: it cannot be served on every replica.
    """
    with installation.database.session() as session:
        champion = champion_of(session, spec.alias)
        running = running_experiment(session, spec.alias)
    if (champion.name_or(spec.name), champion.version) == (spec.name, version):
        return FirstTraffic(version)
    if running is not None and (running.name, running.version) == (spec.name, version):
        return FirstTraffic(version, experiment_id=running.experiment_id)
    first = champion.version is None and not kind_of(spec).plain
    if first and spec.approval == MANUAL:
        return FirstTraffic(version, approval_id=_ask(installation, spec, version))
    services = services_for(installation, spec.alias)
    if first:
        order = Promotion(spec.alias, spec.name, version, ACTOR, FIRST)
        moved = asyncio.run(promote(services, order))
        if moved.promotion is None:
            raise Conflict(f"{spec.alias}: its champion was moved meanwhile; look, then try again")
        return FirstTraffic(version, promotion_id=moved.promotion.promotion_id)
    plan = spec.experiment.settled(installation.configuration.feedback.metrics)
    trial = Trial(spec.alias, spec.name, version, plan, ACTOR, approval=spec.approval)
    row = asyncio.run(start(services, trial))
    return FirstTraffic(version, experiment_id=row.experiment_id)


def _ask(installation: Installation, spec: Spec, version: str) -> str:
    """Ask whether the first version may answer; the request's id."""
    with installation.database.transaction() as session:
        hold(session)
        row = find_version(session, spec.name, version)
        verdict_id = None if row is None else row.verdict_id
        request = Request(spec.alias, spec.name, version, ACTOR, FIRST, verdict_id=verdict_id)
        return ask(session, request).approval_id
