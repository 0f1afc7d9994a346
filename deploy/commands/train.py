"""`llmops train`: one pass of the train pipeline, and what became of former ones."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.state import failed, open_state
from evals.records import Verdict

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pipelines.first_traffic import FirstTraffic
    from pipelines.spec import Spec

app = typer.Typer(no_args_is_help=True)


FRESH = Annotated[bool, typer.Option(help="throw away the checkpoints of a run that was killed")]
TRIED = Annotated[
    bool, typer.Option(help="whether a version that is registered is tried on live traffic")
]


@app.command()
def llm(
    spec: Annotated[Path, typer.Argument(help="a spec file, or a packaged spec's name")] = Path(
        "extractor"
    ),
    fresh: FRESH = False,
    experiment: TRIED = True,
) -> None:
    """Feedback to data set, LoRA training, evaluation against the champion, gate, registration.

    Exit code 0 if a version was registered, 100 if the gate did not let the candidate through.
    """
    _train("llm", spec, fresh=fresh, experiment=experiment)


@app.command()
def tabular(
    spec: Annotated[Path, typer.Argument(help="a spec file, or a packaged spec's name")],
    fresh: FRESH = False,
    experiment: TRIED = True,
) -> None:
    """Events to features, a classifier, evaluation against the champion, gate, registration.

    Exit code 0 if a version was registered, 100 if the gate did not let the candidate through.
    """
    _train("tabular", spec, fresh=fresh, experiment=experiment)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="the model's name; the last run of each by default")
    ] = None,
) -> None:
    """The latest runs of a model: state, stage, what they made, why they ended."""
    from pipelines.runs import latest, newest

    with open_state() as state:
        rows = newest(state.database) if name is None else latest(state.database, name)
    if not rows:
        typer.echo(f"there was no run of {name or 'any model'} here")
        return
    table = Table("model", "run", "state", "stage", "data set", "version", "started", "message")
    for row in rows:
        table.add_row(
            row.name,
            row.run_id,
            row.state,
            row.stage,
            (row.dataset_id or "")[:12],
            row.version or "",
            row.started_at.isoformat(timespec="seconds"),
            escape(row.message or ""),
        )
    print_table(table)


def print_verdict(verdict: Verdict) -> None:
    """A verdict as a table, and its reasons."""
    title = f"{verdict.subject} against {verdict.baseline}: {verdict.decision}"
    table = Table("metric", "baseline", "candidate", "difference", "interval", "n", "", title=title)
    judged = {reason.partition(": ")[0] for reason in verdict.reasons}
    for metric in verdict.metrics:
        numbers = (metric.baseline, metric.candidate, metric.delta)
        shown = ["-" if value is None else f"{value:.3f}" for value in numbers]
        interval = (
            "-" if metric.ci_low is None else f"[{metric.ci_low:+.3f}, {metric.ci_high:+.3f}]"
        )
        undecided = "not shown" if metric.name in judged else ""
        passed = {True: "passed", False: "failed", None: undecided}[metric.passed]
        table.add_row(metric.name, *shown, interval, str(metric.n), passed)
    print_table(table)
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")


def _train(kind: str, spec: Path, *, fresh: bool, experiment: bool) -> None:
    """One pass of the pipeline, told as it goes; ends the command with its exit code."""
    from pipelines.first_traffic import FirstTraffic
    from pipelines.lifecycle import KINDS
    from pipelines.passes import run_pass
    from pipelines.spec import load_spec
    from pipelines.tables import DatasetRow

    console = Console()
    with open_state() as state, looked_up():
        given = load_spec(spec)
        if given.kind in KINDS and given.kind != kind:
            raise failed(f"{spec} is of the kind {given.kind}: llmops train {given.kind} {spec}")
        installation = installation_of(state)
        with console.status(f"training {given.name}") as status:

            def show(stage: str, percent: int, what: str) -> None:
                if console.is_terminal:
                    status.update(f"{stage} {percent:3d} % {escape(what)}")
                elif percent in (0, 100):
                    with suppress(BrokenPipeError):  # whoever read along has gone; it goes on
                        typer.echo(f"{stage} {percent} % {what}".rstrip())

            outcome = run_pass(installation, given, show, fresh=fresh, experiment=experiment)
        typer.echo(f"data set {outcome.dataset_id}, training {outcome.training_id}")
        print_verdict(outcome.verdict)
        if outcome.version is None:
            typer.echo("not registered: the gate did not let it through, and nothing has moved")
            raise typer.Exit(100)
        served = f"served as {outcome.served_name}"
        typer.echo(f"registered: {given.name} version {outcome.version}, {served}")
        begun = FirstTraffic(
            outcome.version, outcome.experiment_id, outcome.promotion_id, outcome.approval_id
        )
        with installation.database.session() as session:
            typer.echo(next_step(session, begun, given, spec))
            learnt_from = session.get_one(DatasetRow, outcome.dataset_id)
        snapshot_id = learnt_from.manifest.get("snapshot_id")
        if snapshot_id is not None:
            typer.echo(f"to serve its features as of then: llmops data materialise {snapshot_id}")


def next_step(session: "Session", begun: "FirstTraffic", given: "Spec", spec: Path) -> str:
    """How it stands with a version's traffic, and what to do about it: what an earlier pass began
    may have ended."""
    from pipelines.approval import OPEN
    from pipelines.champion import RUNNING, champion_of
    from pipelines.tables import ApprovalRow, ExperimentRow

    version, again = begun.version, f"llmops experiment start {given.alias} {begun.version}"
    if begun.approval_id is not None:
        asked = session.get_one(ApprovalRow, begun.approval_id)
        if asked.state == OPEN:
            return f"next: llmops approve grant {asked.approval_id} --reason …"
        return f"approval {asked.approval_id} was {asked.state}: {asked.reason}"
    champion = champion_of(session, given.alias)
    if champion.version == version and champion.name_or(given.name) == given.name:
        return f"{given.alias} is answered by it"
    if begun.promotion_id is not None:
        return f"promotion {begun.promotion_id} was taken back; to try it again: {again}"
    if begun.experiment_id is None:
        return f"next: {again} --spec {spec}"
    trial = session.get_one(ExperimentRow, begun.experiment_id)
    if trial.state == RUNNING:
        tried = f"experiment {trial.experiment_id} is under way on {given.alias}"
        return f"{tried}; see: llmops experiment status {given.alias}"
    ended = f"experiment {trial.experiment_id} of it was {trial.state} and is not begun anew"
    return f"{ended}; to try it again: {again} --spec {spec}"
