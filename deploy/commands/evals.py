"""`llmops evals`: evaluate a prompt, make golden cases of logged requests, calibrate judges."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from deploy.commands.asking import (
    Found,
    client_of,
    judge_by,
    judge_of,
    no_label,
    not_ours,
    prompt_of,
    require_gateway,
    shown_progress,
)
from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.state import State, failed, open_state
from gateway.configuration import load_configuration
from gateway.prompt_versions import PRODUCTION, label_of
from gateway.whole_file import write_whole

if TYPE_CHECKING:
    from evals.calibration import LabelledAnswer
    from evals.evaluation_report import EvaluationReport
    from evals.evaluation_run import Asked, Order
    from evals.evaluation_verdict import Requirement
    from evals.journal import Journal
    from evals.judge import Judge
    from evals.records import Verdict

app = typer.Typer(no_args_is_help=True, help="Evaluate prompts, and calibrate what judges them.")
FAILED = 100
NAME = Annotated[str, typer.Argument(metavar="PROMPT", help="its name, or a file .yaml")]
KEY = Annotated[
    str | None,
    typer.Option(help="environment variable with the gateway's key; else the development key"),
]
WINDOW = Annotated[
    str | None, typer.Option("--window", "--since", help="live traffic instead: 24h, 7d or a date")
]
JUDGE = Annotated[
    str | None, typer.Option(metavar="PROMPT@MODEL", help="where a metric wants a judge")
]
REQUIRE = Annotated[
    list[str] | None,
    typer.Option(metavar="METRIC>=NUMBER", help="alert if it is broken; may be repeated"),
]
ANEW = Annotated[bool, typer.Option("--anew", help="forget what an attempt before has paid for")]


@app.command()
def run(  # noqa: PLR0913 - one parameter for each option
    name: NAME,
    version: Annotated[str | None, typer.Option(help="of the prompt; else production")] = None,
    label: Annotated[str | None, typer.Option(help="instead of a version")] = None,
    cases: Annotated[str | None, typer.Option(help="golden cases; else the prompt's own")] = None,
    window: WINDOW = None,
    most: Annotated[int, typer.Option(min=1, help="newest requests of a window")] = 1000,
    metrics: Annotated[str | None, typer.Option(help="a,b; else those of the prompt")] = None,
    judge: JUDGE = None,
    require: REQUIRE = None,
    against: Annotated[str | None, typer.Option(help="what the gate compares with")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="compare with nothing")] = False,
    out: Annotated[Path | None, typer.Option(help="write the report: .md or .html")] = None,
    api_key_env: KEY = None,
    anew: ANEW = False,
) -> None:
    """Ask a prompt its golden cases, or take a window of the log, and measure the answers.

    A version that is not in production is compared with production, and the prompt's gate decides.

    Exit code 0: fine; 100: the gate says no, or a requirement is broken; 1: an error.
    """
    from evals.evaluation_run import check, settle
    from evals.evaluation_verdict import requirement

    _require_one(("--version", version), ("--label", label))
    _require_one(("--window", window), ("--cases", cases), ("--against", against))
    _require_one(("--against", against), ("--alone", alone), ("--require", require))
    with open_state() as state, looked_up():
        found = prompt_of(state, name, version or label)
        wanted = tuple(requirement(one) for one in require or ())
        order = replace(_order(state, found, (metrics, wanted), (judge, api_key_env)), cases=cases)
        if not (window or alone or wanted):
            order = replace(order, baseline=_baseline(state, found, against))
        if order.baseline is not None:
            order = replace(order, no_label=no_label(found, cases))
        with state.database.session() as session:
            judges = check(session, order)
        if out is not None:
            _require_place(out)
        if not window or judge:
            require_gateway(order.client)
        place = f"{found.prompt.name}{'-log' if window else ''}"
        with _journal(state, place, anew) as journal:
            of_version = found.version if version or label else None
            report = _evaluated(state, order, (window, of_version, most), (judges, journal))
            verdict = _publish(state, report, out)
            _note(settle(journal, report))
    raise typer.Exit(FAILED if verdict.decision.value in ("reject", "alert") else 0)


@app.command()
def add(
    request_id: Annotated[str, typer.Argument(help="of a logged request of the prompt")],
    prompt: Annotated[str, typer.Option(help="the prompt that it was made by")],
    expected: Annotated[
        str | None, typer.Option(metavar="JSON", help="the right answer, such as '\"billing\"'")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="a good answer, as text")] = None,
    file: Annotated[Path | None, typer.Option(help="the file; else the prompt's own")] = None,
) -> None:
    """Make a golden case of a logged request."""
    from evals.golden_cases import add_golden, golden_path
    from evals.logged import NotAnswered, golden_of

    with open_state() as state, looked_up():
        found = prompt_of(state, prompt).prompt
        path = file or (golden_path(found.evaluation.cases) if found.evaluation.cases else None)
        if path is None:
            raise ValueError(f"prompt {found.name} names no golden cases; give a file with --file")
        try:
            case = golden_of(installation_of(state).reader, found, request_id)
        except NotAnswered as error:
            raise failed(str(error)) from error
        case = replace(case, expected=_json(expected), reference=reference or case.reference)
        case = add_golden(path, case, found)
    typer.echo(f"{case.case_id} is in {path}")
    if case.expected is None and case.reference is None:
        _note("it does not say what is right: metrics that compare have no value for it")


@app.command()
def calibrate(
    judge: Annotated[str, typer.Option(metavar="PROMPT", help="the judge's prompt")] = "judge",
    model: Annotated[str | None, typer.Option(help="who judges; else the prompt's model")] = None,
    metric: Annotated[str, typer.Option(help="judge, or a metric of Ragas")] = "judge",
    cases: Annotated[
        str | None, typer.Option(help="labelled answers; else the golden cases of the prompt")
    ] = None,
    api_key_env: KEY = None,
    anew: ANEW = False,
) -> None:
    """Measure how well a judge agrees with people's labels (Cohen's kappa).

    With --cases it is a trial, which no gate goes by.

    Exit code 0: gates accept it; 100: they do not; 1: an error.
    """
    from evals.calibration import calibrate as measure
    from evals.metrics import Instruments
    from evals.records import Decision
    from evals.vectors import Embedder

    with open_state() as state, looked_up():
        name, _, named = judge.partition("@")
        found = prompt_of(state, name)
        one = judge_by(state, found, model or named, api_key_env)
        labelled, trial = _labelled(one, metric, cases), not_ours(found, cases)
        require_gateway(client_of(state, api_key_env=api_key_env))
        with _journal(state, f"{one.prompt.name}-calibration", anew) as journal:
            with shown_progress() as say:
                counted = iter(range(1, len(labelled) + 1))
                instruments = Instruments(
                    Embedder(one.url, one.embeddings, one.api_key).embed,
                    one,
                    journal,
                    lambda: say("judging", next(counted, len(labelled)), len(labelled)),
                )
                verdict, scores = measure(metric, labelled, instruments, trial=trial)
            _store(state, verdict)
            if all(score.value is not None for score in scores):
                journal.finish()
        good = verdict.decision is Decision.PROMOTE
        typer.secho(f"{verdict.subject}: {'accepted' if good else 'refused'}", bold=True)
        typer.echo(f"  by the prompt {found.called}")
        for reason in verdict.reasons:
            typer.echo(f"  {reason}")
        _tell_calibration(state, verdict)
    raise typer.Exit(0 if good else FAILED)


def _labelled(judge: "Judge", metric: str, cases: str | None) -> "list[LabelledAnswer]":
    from evals.calibration import labelled_answers
    from evals.golden_cases import check_golden, golden_path, load_golden
    from evals.metrics import metric_named

    if not metric_named(metric, judge).judged:
        raise ValueError(f"{metric}: no model judges it: there is nothing to calibrate")
    name = cases or judge.prompt.evaluation.cases
    if name is None:
        raise ValueError(f"prompt {judge.prompt.name} names no labelled answers; give --cases")
    golden = load_golden(golden_path(name))
    check_golden(judge.prompt, golden)
    return labelled_answers(judge, golden)


def _require_place(out: Path) -> None:
    """Make the folder of a report. Raises ValueError or OSError where none can be written."""
    if out.is_dir():
        raise ValueError(f"--out {out}: is a folder; a file .md or .html is wanted")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: its folder cannot be made ({error})") from error
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: nothing can be written into {out.parent}")


def _require_one(*options: tuple[str, object]) -> None:
    given = [name for name, value in options if value]
    if len(given) > 1:
        raise failed(f"{' and '.join(given)} do not go together: give one of them")


def _evaluated(
    state: State,
    order: "Order",
    log: tuple[str | None, str | None, int],
    kept: "tuple[list[str], Journal]",
) -> "EvaluationReport":
    from evals.evaluation_run import of_cases, of_window
    from evals.logged import Window
    from gateway.costs import since_time

    (window, of_version, most), (judges, journal) = log, kept
    with shown_progress() as say:
        if window is None:
            return of_cases(order, judges, journal, say)
        rows = installation_of(state).reader, Window(since_time(window), of_version, most)
        return of_window(order, judges, rows, (journal, say))


def _order(
    state: State,
    found: Found,
    measured: "tuple[str | None, tuple[Requirement, ...]]",
    judging: tuple[str | None, str | None],
) -> "Order":
    from evals.evaluation_run import Order

    (metrics, wanted), (judge, api_key_env) = measured, judging
    names = metrics.split(",") if metrics else found.prompt.evaluation.metrics
    names = [*(name.strip() for name in names), *(one.metric for one in wanted)]
    judging_with = None if judge is None else judge_of(state, judge, api_key_env=api_key_env)
    client = client_of(state, api_key_env=api_key_env, judge=judging_with)
    return Order(_asked(found), client, names, requirements=wanted)


def _asked(found: Found) -> "Asked":
    from evals.evaluation_run import Asked
    from pipelines.prompt_labels import subject_of

    return Asked(found.prompt, found.called, subject_of(found.prompt), found.rules)


def _baseline(state: State, found: Found, against: str | None) -> "Asked | None":
    """What the gate compares with: what is asked for, else production, if that is another one."""
    name = found.prompt.name
    with state.database.session() as session:
        if against is None and label_of(session, name, PRODUCTION) is None:
            return None
    base = prompt_of(state, name, against or PRODUCTION)
    if base.prompt.content_hash == found.prompt.content_hash and against is None:
        return None
    if against is None:
        _note(f"compared with production, version {base.version} (--alone: with nothing)")
    judged_alike = base.prompt.model_copy(update={"evaluation": found.prompt.evaluation})
    return _asked(replace(base, prompt=judged_alike))


@contextmanager
def _journal(state: State, name: str, anew: bool) -> "Iterator[Journal]":
    from evals.journal import Journal

    with Journal(state.settings.home / "evaluations" / f"{name}.journal") as journal:
        if anew:
            journal.forget()
        elif journal.found:
            _note(f"goes on from an attempt before: {journal.found} answers are paid for")
        yield journal


def _publish(state: State, report: "EvaluationReport", out: Path | None) -> "Verdict":
    """Write the report, tell MLflow, store the verdict, show all of it."""
    from evals.evaluation_page import page
    from evals.evaluation_report import markdown
    from evals.evaluation_run import PAGE, keep
    from pipelines.evaluation_runs import tell
    from pipelines.verdict_runs import NotTold

    folder = keep(state.settings.home, report)
    report = _with_evidence(report, {"report": str(folder / PAGE)})
    tracking_uri = load_configuration(state.settings.config_path).mlflow.tracking_uri
    if tracking_uri is not None:
        try:
            run_id = tell(tracking_uri, report)
            report = _with_evidence(report, {"mlflow_run": run_id})
        except NotTold as error:
            _note(f"{error}; it is in {folder}")
    if out is not None:
        made = page(report) if out.suffix in (".html", ".htm") else markdown(report)
        write_whole(out, made)
    _store(state, report.verdict)
    _show(report)
    typer.echo(f"report: {folder / PAGE}")
    return report.verdict


def _with_evidence(report: "EvaluationReport", more: dict[str, str]) -> "EvaluationReport":
    evidence = {**report.verdict.evidence, **more}
    return replace(report, verdict=replace(report.verdict, evidence=evidence))


def _show(report: "EvaluationReport") -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from evals.evaluation_report import markdown

    text, console = markdown(report), Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def _store(state: State, verdict: "Verdict") -> None:
    from evals.verdicts import add_verdict

    with state.database.transaction() as session:
        add_verdict(session, verdict)


def _tell_calibration(state: State, verdict: "Verdict") -> None:
    from pipelines.verdict_runs import NotTold, tell

    tracking_uri = load_configuration(state.settings.config_path).mlflow.tracking_uri
    if tracking_uri is not None:
        try:
            tell(tracking_uri, "judges", verdict)
        except NotTold as error:
            _note(str(error))


def _json(text: str | None) -> object:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise failed(
            f'--expected: {text!r} is not JSON ({error}); a text has " around it'
        ) from error


def _note(line: str | None) -> None:
    if line is not None:
        typer.secho(line, fg="yellow", err=True)
