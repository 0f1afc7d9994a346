"""`llmops drift`: compare recent traffic with a pinned reference, and pin references."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from deploy.commands.listing import print_table
from deploy.commands.state import State, failed, open_state
from gateway.configuration import Configuration, load_configuration, owned_section
from gateway.costs import since_time
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from evals.drift_plan import Watched
    from evals.records import Verdict
    from evals.watch import Watch
    from evals.windows import Traffic

app = typer.Typer(no_args_is_help=True, help="Compare recent traffic with a pinned reference.")
reference = typer.Typer(no_args_is_help=True, help="The traffic that is compared with.")
app.add_typer(reference, name="reference")
ALERT = 100
PREDICTS = "kserve"  # the kind of upstream


@app.command()
def check(
    subject: Annotated[
        str | None, typer.Argument(help="a prompt, or model:ALIAS; all that are configured")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="this tenant's traffic alone")] = None,
) -> None:
    """Look at the newest traffic.

    Exit code 0: nothing was found; 100: something was; 1: nothing could be compared, as where no
    reference is pinned, or a look failed.
    """
    from evals.drift_verdict import DAMAGED, NONE
    from evals.records import Decision

    with open_state() as state:
        configuration = load_configuration(state.settings.config_path)
        watch = watch_of(state, configuration)
        verdicts = _looks(watch, configuration, _entries(watch, subject), tenant)
    if any(one is not None and one.decision is Decision.ALERT for one in verdicts):
        raise typer.Exit(ALERT)
    baselines = ["" if one is None else one.baseline for one in verdicts]
    if "" in baselines or DAMAGED in baselines or set(baselines) == {NONE}:
        raise typer.Exit(1)


def _looks(
    watch: "Watch", configuration: Configuration, entries: "list[Watched]", tenant: str | None
) -> "list[Verdict | None]":
    """A look at each traffic there is, told of as it ends; None where it failed, or one is under
    way."""
    import duckdb
    from deltalake.exceptions import DeltaError

    from evals.drift import look
    from evals.slas import ERRORS
    from evals.watch import traffic_of, traffics

    verdicts: list[Verdict | None] = []

    @contextmanager
    def alone(subject: str) -> Iterator[None]:
        """One subject's error takes no later subject along."""
        try:
            yield
        except GatewayError as error:
            typer.secho(f"error: {subject}: {error.message}", fg="red", err=True)
            verdicts.append(None)
        except (*ERRORS, OSError, SQLAlchemyError, duckdb.Error, DeltaError) as error:
            said = f"error: {subject}: {type(error).__name__}: {error}"
            typer.secho(said, fg="red", err=True)
            verdicts.append(None)

    for watched in entries:
        found: list[Traffic] = []
        subject = traffic_of(watched).subject
        with alone(subject):
            found = traffics(watch, watched, tenant)
            if not found:
                said = f"no request in the last {watch.plan.hours:g} hours"
                typer.echo(f"{subject}: {said}")
        for traffic in found:
            with alone(traffic.subject):
                verdict = look(watch, traffic)
                verdicts.append(verdict)
                _print(verdict)
                _tell_mlflow(configuration, verdict)
    return verdicts


@reference.command()
def pin(
    subject: Annotated[str, typer.Argument(help="a prompt, or model:ALIAS")],
    since: Annotated[str, typer.Option(help="7d, 24h or a date")] = "7d",
    rows: Annotated[int, typer.Option(min=100, help="the newest ones, at most")] = 50_000,
    tenant: Annotated[str | None, typer.Option(help="this tenant's traffic alone")] = None,
    reason: Annotated[str | None, typer.Option(help="for the audit trail")] = None,
) -> None:
    """Freeze recent traffic as what later traffic is compared with."""
    from dataclasses import asdict, replace

    from evals.prediction_reference import logged_predictions
    from evals.reference import NoReference, told
    from evals.reference import pin as pin_rows
    from evals.watch import traffic_of
    from evals.windows import Period, read_window
    from gateway.audit import Change, record

    with open_state() as state:
        configuration = load_configuration(state.settings.config_path)
        watch = watch_of(state, configuration)
        watched = (_configured(watch, subject) or [_watched(subject)])[0]
        traffic = replace(traffic_of(watched, watch.predicting), tenant=tenant)
        moment = watch.now()
        start = int(since_time(since, moment).timestamp() * 1_000_000)
        period = Period(start, int(moment.timestamp() * 1_000_000), rows)
        try:
            if traffic.predictions is not None:
                traffic, frame, about = logged_predictions(watch, traffic, period)
                pinned = pin_rows(state.settings.home, traffic, frame, state.actor, about)
            else:
                frame = read_window(watch.reader, traffic, period)
                pinned = pin_rows(state.settings.home, traffic, frame, state.actor)
        except NoReference as error:
            raise failed(str(error)) from error
        with state.database.transaction() as session:
            change = Change(
                state.actor, "drift.pin", f"drift:{traffic.key}", reason, after=asdict(pinned)
            )
            record(session, change)
    typer.echo(f"{pinned.name} is what {traffic.key} is compared with from now on")
    typer.echo(told(pinned))
    if pinned.rows < watch.plan.least_rows:
        typer.secho("that is little: a small reference finds little", fg="yellow", err=True)


@reference.command(name="list")
def list_references() -> None:
    """What is pinned."""
    from evals.reference import every, told

    with open_state() as state:
        table = Table("subject", "reference", "rows", "pinned", "by")
        for one in every(state.settings.home):
            table.add_row(one.key, one.name, told(one), one.pinned_at, escape(one.pinned_by))
    print_table(table)


def watch_of(state: State, configuration: Configuration) -> "Watch":
    """What a look works with, as the configuration says."""
    from deploy.parts import reachable
    from deploy.ready import KEY_FILE
    from evals.drift_plan import DriftPlan
    from evals.vectors import Embedder
    from evals.watch import Watch
    from gateway.request_log import LogReader

    plan = owned_section(configuration, "drift", DriftPlan, str(state.settings.config_path))
    embedder = None
    if plan.vector_model is not None:
        server = configuration.server
        key = state.settings.secret_value(plan.api_key_env) if plan.api_key_env else None
        file = state.settings.home / KEY_FILE
        if key is None and plan.api_key_env is None and file.exists():
            key = file.read_text().strip()
        url = f"http://{reachable(server.host)}:{server.port}/v1"
        embedder = Embedder(url, plan.vector_model, key or "")
    reader = LogReader.open(state.settings, configuration.log)
    return Watch(
        state.settings.home,
        reader,
        state.database,
        plan,
        embedder,
        predicting=_predicting(configuration),
        champion=partial(_champion, state),
    )


def _predicting(configuration: Configuration) -> frozenset[str]:
    """Aliases whose upstream answers with predictions."""
    kinds: dict[str, str] = {name: one.kind for name, one in configuration.upstreams.items()}
    models = configuration.models.items()
    return frozenset(alias for alias, model in models if kinds[model.upstream] == PREDICTS)


def _champion(state: State, alias: str) -> str | None:
    """The served name of the version that answers `alias`."""
    from pipelines.champion import champion_of, served_name_of

    with state.database.session() as session:
        champion = champion_of(session, alias)
        return served_name_of(session, champion.name_or(alias), champion.version)


def _entries(watch: "Watch", subject: str | None) -> "list[Watched]":
    if subject is None:
        if not watch.plan.subjects:
            raise ValueError("drift.subjects: nothing is watched; name a subject, or configure one")
        return list(watch.plan.subjects)
    known = _configured(watch, subject)
    if not known:
        known = [_watched(subject)]
        _must_be_known(watch, known[0])
    return known


def _configured(watch: "Watch", subject: str) -> "list[Watched]":
    """The plan's entries for a subject: they say which variables are what."""
    wanted = _watched(subject)
    return [
        one
        for one in watch.plan.subjects
        if (one.prompt, one.model) == (wanted.prompt, wanted.model)
    ]


def _watched(subject: str) -> "Watched":
    from evals.drift_plan import Watched

    kind, _, rest = subject.partition(":")
    if kind == "model" and rest:
        return Watched(model=rest)
    return Watched(prompt=subject)


def _must_be_known(watch: "Watch", watched: "Watched") -> None:
    """A name that nobody has heard of is a mistake, not a quiet subject."""
    from evals.reference import every
    from evals.watch import traffic_of
    from evals.windows import count_rows

    traffic = traffic_of(watched, watch.predicting)
    pinned = {one.key for one in every(watch.home)}
    if traffic.key not in pinned and not count_rows(watch.reader, traffic, watch.period(0)):
        raise ValueError(
            f"{traffic.key}: nobody has asked it in the last {watch.plan.hours:g} hours, and no "
            "reference of it is pinned; a subject is a prompt's name, or model:ALIAS"
        )


def _print(verdict: "Verdict") -> None:
    colour = "red" if verdict.decision.value == "alert" else None
    typer.secho(f"{verdict.subject} against {verdict.baseline}: {verdict.decision}", fg=colour)
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")
    if "report" in verdict.evidence:
        typer.echo(f"  report: {verdict.evidence['report']}")


def _tell_mlflow(configuration: Configuration, verdict: "Verdict") -> None:
    """The verdict is in the state database already; MLflow shows it too, if it is there."""
    from pipelines.verdict_runs import NotTold, tell

    if configuration.mlflow.tracking_uri is None or not verdict.metrics:
        return
    try:
        tell(configuration.mlflow.tracking_uri, "drift", verdict)
    except NotTold as error:
        typer.secho(f"  {error}", fg="yellow", err=True)
