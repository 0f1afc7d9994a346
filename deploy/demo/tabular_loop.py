"""The product as the replay of flights uses it: passes of the pipeline, looks at drift, the
trigger, promotions. Nothing is decided here: verdicts are the gate's and the watch's."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from deploy.demo.loop import ACTOR, InstalledLoop, failing, thresholds_of
from deploy.demo.readiness import problems_of
from deploy.demo.stage import Champion, Show, Step
from deploy.demo.tabular_terms import QUICK, FlightBudget, FlightTerms, spec_until
from evals.drift_plan import Watched
from evals.prediction_plan import Predictions
from evals.records import Verdict
from evals.spending import come_in, used
from evals.watch import Watch, traffic_of
from gateway.database import now
from gateway.whole_file import write_whole
from pipelines import promotion
from pipelines.engines import services_for
from pipelines.installation import Installation
from pipelines.passes import Outcome, run_pass
from pipelines.spec import Spec
from pipelines.trigger import Trigger
from pipelines.trigger_rules import Rule, Triggers

RULE = "demo-flights"
SETTLE_SECONDS, POLL_SECONDS = 20.0, 0.2
IN_FORCE_SECONDS = 2.0  # after a move, until every worker of the gateway follows it
MOMENT = "1s"  # the replay waits for nothing: neither for labels nor for a cool-down
MISSING = 0.25  # share of a feature; of the weather's pressure a tenth is missing all year


class FlightLoop:
    """One installation, one spec of the tabular kind."""

    def __init__(self, installation: Installation, spec: Spec, loop: InstalledLoop, watch: Watch):
        self.installation = installation
        self.spec = spec
        self.loop = loop
        self._watch = watch

    def problems(self) -> Sequence[str]:
        """What stands in the way, each with what to do."""
        found = problems_of(self.installation, self.spec) or self.loop.under_way()
        champion = None if found else self.loop.champion()
        if champion is not None and champion.version is not None:
            found = [
                f"{self.spec.alias} is answered by {champion.name}, and the replay begins before "
                "anything answers it: begin with a fresh LLMOPS_HOME (llmops down, then up there)"
            ]
        return found

    def terms(self, seed: int, *, quick: bool) -> FlightTerms:
        """What will be replayed, with the thresholds as they will be used."""
        terms = FlightTerms(self.spec.alias, seed, QUICK if quick else FlightBudget())
        spec = spec_until(self.spec, terms, terms.budget.months[0])
        return replace(terms, thresholds=thresholds_of(spec))

    def train(self, spec: Spec, show: Show, *, first: bool = False) -> Outcome:
        """One pass of the pipeline. The `first` version is promoted by it, if the gate lets it."""

        def on_progress(stage: str, percent: int, what: str) -> None:
            show(Step(stage, percent, 100, what))

        with failing():
            return run_pass(self.installation, spec, on_progress, experiment=first)

    def look(self, began: datetime, least_rows: int) -> Verdict:
        """The watch's look at the predictions since `began` that no look has compared.

        The budget of false alarms is a month's, and here months pass in a minute: each look gets
        the budget that a month's single look would have.
        """
        from evals.drift import look

        predictions = Predictions.model_validate(
            {
                "label": self.spec.experiment.metric,
                "label_after": MOMENT,
                "slas": {"sla_missing": MISSING},
            }
        )
        watched = Watched(model=self.spec.alias, predictions=predictions)
        traffic = traffic_of(watched, self._watch.predicting)
        with failing():
            moment, plan = now(), self._watch.plan
            with self.installation.database.session() as session:
                spent = used(session, traffic.subject, moment)
            changed = {
                "hours": (moment - began).total_seconds() / 3600,
                "least_rows": least_rows,
                "alarms": (spent + plan.alarms) / come_in(1.0, moment),
            }
            own = replace(self._watch, plan=plan.model_copy(update=changed))
            return look(own, traffic)

    def triggered(self, verdict: Verdict, spec: Spec, file: Path) -> bool:
        """Whether the trigger starts a training by `spec` for this verdict; its event is recorded.

        The rule is the demo's own: one in the configuration would train the packaged period again.
        """
        write_whole(file, spec.text())
        rule = Rule.model_validate(
            {
                "name": RULE,
                "when": {"subject": verdict.subject},
                "pipeline": str(file),
                "cooldown": MOMENT,
            }
        )
        started: list[str] = []
        trigger = Trigger(
            self.installation.database,
            self.installation.settings,
            Triggers(rules=(rule,)),
            start=lambda _rule, of: started.append(of.verdict_id),
        )
        with failing():
            asyncio.run(trigger.step())
        return verdict.verdict_id in started

    def promote(self, outcome: Outcome) -> Champion:
        """Make a version champion because the gate says so; who answers then."""
        reason = f"demo: the gate's verdict {outcome.verdict.verdict_id}"
        order = promotion.Promotion(
            self.spec.alias, self.spec.name, str(outcome.version), ACTOR, reason
        )
        with failing():
            asyncio.run(promotion.promote(services_for(self.installation, self.spec.alias), order))
        return self.settled()

    def settled(self) -> Champion:
        """Who answers, once traffic and MLflow agree and the gateway follows; or as it is after
        a while."""
        deadline = time.monotonic() + SETTLE_SECONDS
        time.sleep(IN_FORCE_SECONDS)
        while not (champion := self.loop.champion()).agreed and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return champion

    @contextmanager
    def experiment(self, experiment_id: str, seconds: float) -> Iterator[None]:
        """Wait after the block until the controller has decided; what is undecided is stopped."""
        try:
            yield
            deadline = time.monotonic() + seconds
            while self.loop.trial(experiment_id).running and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:
            self.loop.stop_trial(experiment_id, "demo: its month is over")
