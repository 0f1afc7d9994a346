"""`llmops prompts evaluate`: what a branch makes of the prompts, beside what they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.asking import client_of, judge_of, require_gateway, shown_progress
from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.state import State, failed, open_state
from gateway.database import now
from gateway.errors import GatewayError
from gateway.settings import load_settings
from gateway.whole_file import write_whole
from prompts.library import LIBRARY

if TYPE_CHECKING:
    from evals.evaluation import Client
    from pipelines.prompt_change import Change
    from pipelines.prompt_comparison import Comparison
    from pipelines.prompt_report import Report
    from pipelines.prompt_revisions import Repository, Revision

FAILED = 100
PAGE, COMMENT, PLAIN = "report.html", "report.md", "report.json"
EXPERIMENT = "prompts"


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared.

    Attributes:
        base: what it is called; `commit`: of it, where it is a revision.
        notes: what is to be known of both.
    """

    base: str
    commit: str | None
    head: "Revision"
    changes: "Sequence[Change]"
    notes: tuple[str, ...] = ()


def evaluate(  # noqa: PLR0913 - one parameter for each option
    base: Annotated[str | None, typer.Option(help="revision before, such as origin/main")] = None,
    production: Annotated[
        bool, typer.Option("--production", help="before is what `production` names here")
    ] = False,
    head: Annotated[str, typer.Option(help="revision after")] = "HEAD",
    work_tree: Annotated[
        bool, typer.Option("--work-tree", help="after is the files as they are, committed or not")
    ] = False,
    folder: Annotated[Path, typer.Option(help="folder of prompt files")] = LIBRARY,
    cases: Annotated[
        Path | None, typer.Option(help="folder of golden cases; else the project's own")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="PROMPT@MODEL", help="where a metric wants a judge")
    ] = None,
    url: Annotated[str | None, typer.Option(help="gateway, with its /v1; else this one's")] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env",
            "--key-env",
            help="environment variable with the gateway's key; else the development key",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the report")] = None,
) -> None:
    """Ask prompts that were changed, before and after, the same cases; the gate decides.

    Exit code 0: nothing is worse; 100: something is, or could not be judged; 1: an error.
    """
    if (base is None) != production:
        raise failed("--base REVISION, or --production: give one of them")
    place = out or load_settings().home / "reports" / "prompts"
    for name in (PAGE, PLAIN, COMMENT):  # a former one must not be taken for this one's
        (place / name).unlink(missing_ok=True)
    with open_state() as state, looked_up(), _errors_told(place):
        sides = _sides(state, (base, head, work_tree), folder, cases)
        client = client_of(
            state,
            api_key_env=api_key_env,
            judge=judge_of(state, judge, api_key_env=api_key_env) if judge else None,
        )
        client = client if url is None else replace(client, url=url.rstrip("/"))
        report = _report(state, sides, client)
        _put(place, report)
    _tell(report, place)
    raise typer.Exit(FAILED if report.failed else 0)


def _sides(
    state: State, asked: tuple[str | None, str, bool], folder: Path, cases: Path | None
) -> Sides:
    from evals.golden_cases import GOLDEN
    from pipelines.prompt_acceptance import judged_already, production_prompts
    from pipelines.prompt_change import against_production, changes
    from pipelines.prompt_revisions import Repository
    from pipelines.prompt_sync import unfit

    base, name, work_tree = asked
    repository = Repository(folder, cases or GOLDEN)
    after = repository.work_tree(unfit) if work_tree else repository.revision(name, unfit)
    notes = () if work_tree else tuple(_uncommitted(repository, name))
    if base is None:
        with state.database.session() as session:
            found = against_production(production_prompts(session), after)
            known = {one.name: judged_already(session, one) for one in found}
        notes += tuple(
            f"{name}: judged already, the same versions on the same cases: {verdict.decision} "
            f"(verdict {verdict.verdict_id})"
            for name, verdict in known.items()
            if verdict is not None
        )
        fresh = [one for one in found if known[one.name] is None]
        return Sides("production", None, after, fresh, notes)
    tip, fork = repository.commit(base), repository.fork_point(base, name)
    before = repository.revision(base, commit=fork)
    if tip != fork:
        notes += (f"{base} has moved on since the branch was made; compared is {fork[:12]}",)
    return Sides(str(before), fork, after, changes(before, after), notes)


def _uncommitted(repository: "Repository", head: str) -> Iterator[str]:
    """A note where files were changed and are not asked for."""
    found = repository.uncommitted() if head == "HEAD" else ()
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"not committed, so not evaluated: {found[0]}{more} (--work-tree evaluates it)"


def _report(state: State, sides: Sides, client: "Client") -> "Report":
    from evals.calibration import require_calibrated
    from evals.journal import Journal
    from pipelines.prompt_acceptance import keep_verdicts
    from pipelines.prompt_comparison import compare
    from pipelines.prompt_report import Report, section_of

    if any(one.head is not None and one.cases for one in sides.changes):
        require_gateway(client)
    with state.database.session() as session:
        for one in sides.changes:
            where = f"prompt {one.name}: evaluation.gate"
            require_calibrated(session, one.conditions, client.judge, where)
    with Journal(state.settings.home / "evaluations" / "prompt-changes.jsonl") as journal:
        with shown_progress() as say:
            found = compare(sides.changes, client, journal=journal, say=say)
        evidence = {"base": sides.commit or sides.base, "head": sides.head.sha or sides.head.name}
        found = keep_verdicts(state.database, found, evidence)
        notes = (*sides.notes, *_told_to_mlflow(state, found))
        sections = tuple(section_of(one) for one in found)
        report = Report(sides.base, str(sides.head), sections, notes, now())
        journal.finish()
    return report


def _told_to_mlflow(state: State, found: "Sequence[Comparison]") -> Iterator[str]:
    """Log the verdicts in MLflow; a note where that is away, which changes nothing else."""
    from pipelines.verdict_runs import NotTold, tell

    installation = installation_of(state)
    if installation.configuration.mlflow.tracking_uri is None:
        return
    try:
        for one in found:
            if one.verdict is not None:
                tell(installation.tracking_uri(), EXPERIMENT, one.verdict)
    except NotTold as error:
        yield f"MLflow has not all of this: {error}"


def _put(place: Path, report: "Report") -> None:
    import orjson

    from pipelines.prompt_comment import comment
    from pipelines.prompt_report import page, plain

    texts = {
        PAGE: page(report),
        PLAIN: orjson.dumps(plain(report), option=orjson.OPT_INDENT_2).decode(),
        COMMENT: comment(report),
    }
    for name, text in texts.items():
        write_whole(place / name, text)


@contextmanager
def _errors_told(place: Path) -> Iterator[None]:
    """Where nothing could be evaluated the report says so; an earlier one must not stand there."""
    from pipelines.prompt_comment import error_comment

    try:
        yield
    except (GatewayError, ValueError, RuntimeError, OSError) as error:
        write_whole(place / COMMENT, error_comment(str(error)))
        raise


def _tell(report: "Report", place: Path) -> None:
    for section in report.sections:
        color = "red" if section.failed else "green"
        typer.secho(f"{section.name}: {section.outcome}", fg=color, bold=True)
        for reason in section.comparison.reasons:
            typer.echo(f"  {reason}")
        for flips in section.flips:
            typer.echo(f"  {flips.metric}: {flips.worse} cases got worse, {flips.better} better")
        for note in section.comparison.change.notes:
            typer.secho(f"  note: {note}", fg="yellow")
    for note in report.notes:
        typer.secho(f"note: {note}", fg="yellow", err=True)
    typer.echo(report.title)
    typer.echo(f"report: {place / PAGE}")
