"""`llmops experiment`: try a version of a model or a prompt on a share of its users, watch it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.state import open_state
from evals.records import MetricResult
from gateway.configuration import ConfigurationError
from gateway.prompt_versions import versions_of
from gateway.variants import PROMPT_SPLIT

if TYPE_CHECKING:
    from pipelines.experiment import Trial
    from pipelines.installation import Installation
    from pipelines.plan import Plan
    from pipelines.spec import Spec
    from pipelines.tables import ExperimentRow

PASSED = {True: "holds", False: "broken", None: "not known yet"}

app = typer.Typer(no_args_is_help=True)
ALIAS = Annotated[str, typer.Argument(help="whose traffic: a model's alias, or prompt:NAME")]
ID = Annotated[str, typer.Argument(metavar="ID", help="the experiment")]


@app.command()
def start(
    alias: ALIAS,
    version: Annotated[
        str | None, typer.Argument(help="the candidate; none: the champion against itself (A/A)")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="share of the users that get it; the plan's by default")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="file with a plan, in place of the packaged or spec's one")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="spec of the model, with the plan; that of its last pass by default"),
    ] = None,
    unjudged: Annotated[
        str | None, typer.Option(help="why a version that no verdict lets through may be tried")
    ] = None,
) -> None:
    """Give a candidate its share of the users, once it can be served. The controller decides."""
    from pipelines import experiment
    from pipelines.engines import services_for

    with open_state() as state, looked_up():
        installation = installation_of(state)
        name, planned, approval = _planned(installation, alias, plan, spec)
        if weight is not None:
            planned = _weighted(planned, weight)
        metrics = installation.configuration.feedback.metrics
        trial = experiment.Trial(
            alias, name, version, planned.settled(metrics), state.actor, unjudged, approval
        )
        row = asyncio.run(experiment.start(services_for(installation, alias), trial))
    typer.echo(f"experiment {row.experiment_id} is under way on {alias}")
    typer.echo(_shares(row))
    typer.echo(_what_decides(trial))
    typer.echo(f"see: llmops experiment status {alias}")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="how many, the newest first")] = 20,
) -> None:
    """The latest experiments on all aliases and prompts."""
    from pipelines import experiment

    with open_state() as state:
        rows = experiment.latest(state.database, None, limit)
    if not rows:
        typer.echo("there was no experiment here; see: llmops experiment start --help")
        return
    _print(rows, with_alias=True)


@app.command()
def status(alias: ALIAS = "extractor") -> None:
    """The latest experiments on an alias, and how the one under way stands."""
    from pipelines import experiment

    with open_state() as state, looked_up():
        installation = installation_of(state)
        rows = experiment.latest(state.database, alias)
        if not rows:
            _require_alias(installation, alias)
            typer.echo(f"there was no experiment on {alias} here")
            return
        _print(rows, with_alias=False)
        for row in rows:
            if row.state == "running":
                _tell_standing(installation, row)


@app.command()
def show(experiment_id: ID) -> None:
    """One experiment: its arms and plan, and what each metric says."""
    from evals.verdicts import find_verdict
    from pipelines import experiment

    with open_state() as state, looked_up():
        installation = installation_of(state)
        with state.database.session() as session:
            row = experiment.find_experiment(session, experiment_id)
            verdict = find_verdict(session, row.verdict_id) if row.verdict_id else None
        typer.echo(f"experiment {row.experiment_id} on {row.alias}: {row.state}")
        typer.echo(f"arms     {_shares(row)}")
        typer.echo(f"plan     {_told(row.plan)}")
        typer.echo(f"started  {row.started_at.isoformat(timespec='seconds')}")
        if row.ended_at is not None:
            typer.echo(f"ended    {row.ended_at.isoformat(timespec='seconds')}: {row.message}")
        if row.state == "running":
            _tell_standing(installation, row)
        elif verdict is not None:
            typer.echo(f"verdict  {verdict.verdict_id}: {verdict.decision}\n")
            _print_metrics(verdict.metrics)


@app.command()
def stop(
    experiment_id: Annotated[str, typer.Argument(metavar="ID", help="the one under way")],
    reason: Annotated[str, typer.Option(help="for the audit trail")],
) -> None:
    """End an experiment without a winner; everybody gets the champion."""
    from pipelines import experiment

    with open_state() as state, looked_up():
        row = experiment.stop(state.database, experiment_id, reason, state.actor)
    typer.echo(f"experiment {row.experiment_id} is {row.state}")


def _planned(
    installation: "Installation", alias: str, plan: Path | None, spec: Path | None
) -> tuple[str, "Plan", str]:
    """What is tried, by its registered name, the plan for it, and who approves a win."""
    from pipelines.approval import AUTOMATIC
    from pipelines.plan import PLANS, load_plan
    from pipelines.spec import load_spec

    if alias.startswith(PROMPT_SPLIT):
        if spec is not None:
            raise ConfigurationError("--spec: a prompt has none; see --plan")
        return alias, load_plan(plan or PLANS / "prompt.yaml"), AUTOMATIC
    given = _last_spec(installation, alias) if spec is None else load_spec(spec)
    if given.alias != alias:
        raise ConfigurationError(
            f"alias: the spec {spec} is of {given.alias}, not of {alias}; see --spec"
        )
    return given.name, given.experiment if plan is None else load_plan(plan), given.approval


def _last_spec(installation: "Installation", alias: str) -> "Spec":
    """The spec of the last pass whose model is behind the alias, else the packaged one."""
    from pipelines.runs import last_of_alias
    from pipelines.spec import SPECS, Spec, load_spec

    last = last_of_alias(installation.database, alias)
    if last is not None:
        return Spec.model_validate(last.spec)
    if (SPECS / f"{alias}.yaml").exists():
        return load_spec(Path(alias))
    with installation.database.session() as session:
        prompt = versions_of(session, alias)
    hint = f"a prompt's are on {PROMPT_SPLIT}{alias}" if prompt else "see --spec"
    raise ConfigurationError(f"alias: no pass of {alias} was run here; {hint}")


def _require_alias(installation: "Installation", alias: str) -> None:
    """Raises ConfigurationError or NotFound if there is no such model or prompt."""
    from pipelines.prompt_labels import require_prompt

    if not alias.startswith(PROMPT_SPLIT):
        installation.upstream_of(alias)
        return
    with installation.database.session() as session:
        require_prompt(session, alias.removeprefix(PROMPT_SPLIT))


def _weighted(plan: "Plan", weight: float) -> "Plan":
    from pipelines.plan import parse_plan

    return parse_plan(plan.model_dump() | {"weight": weight}, "--weight")


def _what_decides(trial: "Trial") -> str:
    plan = trial.plan
    guards = ", ".join(one.metric for one in plan.guardrails)
    held = (
        f"; after a win {plan.holdback:.0%} keep the former version for {plan.watch_hours:g} h, "
        "and it is watched"
    )
    return (
        f"decided by {plan.metric} of {plan.minimum_users} users in each arm or more"
        + (f"; guardrails: {guards}" if guards else "")
        + (held if plan.holdback else "")
    )


def _tell_standing(installation: "Installation", row: "ExperimentRow") -> None:
    from pipelines import experiment
    from pipelines.observations import Observations

    observations = Observations(installation.database, installation.reader, row)
    finding = experiment.examine(row, observations)
    typer.echo(finding.reason)
    _tell_unserved(installation, row)
    if finding.guards:
        typer.echo("")
        _print_metrics((finding.result, *finding.guards))


def _tell_unserved(installation: "Installation", row: "ExperimentRow") -> None:
    """Arms that a replica does not serve: their users get errors until it does."""
    from pipelines.engines import engine_of
    from pipelines.rollout import RolloutFailed

    if row.alias.startswith(PROMPT_SPLIT):
        return
    engine = engine_of(installation, row.alias)
    wanted = {arm["variant"]["adapter"] for arm in row.arms} - {None}
    for url in engine.urls if wanted else ():
        try:
            missing = wanted - asyncio.run(engine.replicas().served(url))
        except RolloutFailed as error:
            typer.echo(f"warning: {error}")
            continue
        for name in sorted(missing):
            typer.echo(f"warning: {url} does not serve {name}; why: llmops logs-of controller")


def _print(rows: "Sequence[ExperimentRow]", *, with_alias: bool) -> None:
    alias = ["on"] if with_alias else []
    table = Table("experiment", *alias, "version", "state", "started", "message")
    for row in rows:
        cells = [row.version or "A/A", _state(row), row.started_at.isoformat(timespec="seconds")]
        on = [row.alias] if with_alias else []
        table.add_row(row.experiment_id, *on, *cells, escape(row.message or ""))
    print_table(table)


def _print_metrics(metrics: Iterable[MetricResult]) -> None:
    table = Table(
        "metric", "champion", "challenger", "difference", "interval", "users", "", box=None
    )
    for one in metrics:
        numbers = (one.baseline, one.candidate, one.delta)
        ends = "-" if one.delta is None else f"{one.ci_low:+.3g} to {one.ci_high:+.3g}"
        texts = ["-" if value is None else f"{value:.3g}" for value in numbers]
        table.add_row(one.name, *texts, ends, str(one.n), PASSED[one.passed])
    print_table(table)


def _state(row: "ExperimentRow") -> str:
    return f"{row.state} (watch)" if row.plan.get("watches") else row.state


def _shares(row: "ExperimentRow") -> str:
    return ", ".join(
        f"{one['variant']['name']} {_what(one['variant'])} {one['weight']:.0%}" for one in row.arms
    )


def _what(variant: Mapping[str, str | None]) -> str:
    if variant.get("prompt_version"):
        return f"version {variant['prompt_version']}"
    return variant["adapter"] or "base"


def _told(plan: Mapping[str, Any]) -> str:
    """A plan's keys in one line, without those that say nothing."""
    said = {key: value for key, value in plan.items() if value not in (None, [], 0.0)}
    guardrails = [
        " ".join(f"{key} {value:g}" if key != "metric" else value for key, value in one.items())
        for one in ({k: v for k, v in each.items() if v is not None}
                    for each in said.pop("guardrails", []))
    ]  # fmt: skip
    lines = [f"{key} {value}" for key, value in said.items()]
    return "; ".join([", ".join(lines), *(f"guardrail {one}" for one in guardrails)])
