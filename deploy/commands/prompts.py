"""`llmops prompts`: take the library's prompts over, look at their versions, move their labels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
import yaml
from rich.markup import escape
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.prompts_evaluate import evaluate
from deploy.commands.state import State, failed, open_state
from gateway.prompt_versions import PRODUCTION, PromptVersionRow, labels_of, versions_of
from prompts.library import LIBRARY
from prompts.prompt import Prompt

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pipelines.prompt_promotion import Labelled
    from pipelines.prompt_sync import Synced

SHOWN_DIGITS = 12
STYLES = {"+": "green", "-": "red", "@": "cyan"}

app = typer.Typer(no_args_is_help=True)
app.command()(evaluate)
NAME = Annotated[str, typer.Argument(help="the prompt's name")]
REASON = Annotated[str, typer.Option(help="for the audit trail")]
WHICH = Annotated[str, typer.Argument(metavar="[VERSION|LABEL]", help="a version or a label")]
AS_JSON = Annotated[bool, typer.Option("--json", help="as JSON")]


@app.command()
def sync(
    folder: Annotated[Path, typer.Option(help="folder of prompt files")] = LIBRARY,
    first_label: Annotated[
        bool,
        typer.Option("--first-label", help="make new prompts `production`, which have none yet"),
    ] = False,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="move `production` to versions that the gate let through"),
    ] = False,
) -> None:
    """Make a version of each prompt whose content is new, in MLflow and for the gateway."""
    from pipelines import prompt_acceptance, prompt_sync
    from pipelines.prompt_registry import PromptRegistry

    with open_state() as state, looked_up():
        sources = prompt_sync.read_sources(folder)
        installation = installation_of(state)
        registry = PromptRegistry(installation.tracking_uri())
        order = prompt_sync.SyncOrder(state.actor, first_label)
        done = prompt_sync.sync(state.database, registry, sources, order)
        for one in done:
            typer.echo(_said(one))
        if accept:
            moved, held = prompt_acceptance.accept(state.database, done, state.actor)
            for labelled in moved:
                _tell(labelled)
            for line in held:
                typer.secho(f"note: {line}", fg="yellow", err=True)
        for line in _notes(state, done, installation.configuration.models, sources):
            typer.secho(line, fg="yellow", err=True)


@app.command("list")
def list_(as_json: AS_JSON = False) -> None:
    """Every prompt: its newest version and what its labels name."""
    with open_state() as state, state.database.session() as session:
        from sqlalchemy import select

        names = session.scalars(select(PromptVersionRow.name).distinct())
        found = [(versions_of(session, name), labels_of(session, name)) for name in sorted(names)]
    if as_json:
        typer.echo(orjson.dumps([_plain(rows[-1], labels) for rows, labels in found]).decode())
        return
    if not found:
        typer.echo("there is no prompt here; see: llmops prompts sync")
        return
    table = Table("prompt", "versions", PRODUCTION, "other labels", "newest", "commit", box=None)
    for rows, labels in found:
        others = ", ".join(f"{label} {version}" for label, version in sorted(labels.items())
                           if label != PRODUCTION)  # fmt: skip
        newest = rows[-1]
        table.add_row(
            newest.name, str(len(rows)), labels.get(PRODUCTION, "-"), others or "-",
            f"{newest.version} ({newest.content_hash[:SHOWN_DIGITS]})", _commit(newest.git_sha),
        )  # fmt: skip
    print_table(table)
    with open_state() as state, state.database.session() as session:
        for line in [_under_way(session, rows[-1].name) for rows, _ in found]:
            typer.echo(line, nl=False)


@app.command()
def show(name: NAME, which: WHICH = PRODUCTION, as_json: AS_JSON = False) -> None:
    """One version: where it is from, which labels name it, what it says."""
    with _version(name, which) as (row, labels):
        if as_json:
            typer.echo(orjson.dumps(_plain(row, labels, content=True)).decode())
            return
        named = ", ".join(label for label, version in labels.items() if version == row.version)
        typer.echo(f"{row.name} version {row.version}" + (f" ({named})" if named else ""))
        typer.echo(f"content {row.content_hash}")
        typer.echo(f"from    {row.path} at {_commit(row.git_sha)}")
        typer.echo(f"since   {row.created_at.isoformat(timespec='seconds')}")
        with open_state() as state, state.database.session() as session:
            typer.echo(_under_way(session, row.name))
        typer.echo(_text(row.prompt).rstrip())


@app.command()
def diff(
    name: NAME,
    a: Annotated[str, typer.Argument(metavar="A", help="a version or a label")],
    b: Annotated[str, typer.Argument(metavar="B", help="another one")],
) -> None:
    """What is otherwise in version B than in version A."""
    from difflib import unified_diff

    with _version(name, a) as (one, _), _version(name, b) as (other, _):
        titles = [f"{name} version {row.version}" for row in (one, other)]
        texts = [_text(row.prompt).splitlines() for row in (one, other)]
    lines = list(unified_diff(texts[0], texts[1], titles[0], titles[1], lineterm=""))
    for line in lines:
        typer.secho(line, fg=STYLES.get(line[:1]))
    if not lines:
        typer.echo(f"{titles[0]} and {titles[1]} are the same")


@app.command()
def render(
    name: NAME,
    which: WHICH = PRODUCTION,
    var: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="a variable; may be repeated")
    ] = None,
    variables: Annotated[
        Path | None, typer.Option("--vars", help="file with all variables, JSON or YAML")
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """The messages that a model would get. What is no text is given as JSON: `--var 'xs=["a"]'`."""
    with _version(name, which) as (row, _):
        prompt = row.prompt
        given = {**_from_file(variables), **_from_options(prompt, var or [])}
        messages = prompt.render(given)
    if as_json:
        typer.echo(orjson.dumps(messages).decode())
        return
    for message in messages:
        typer.secho(f"{message['role']}:", bold=True)
        typer.echo(message["content"].rstrip("\n") + "\n")


@app.command()
def label(
    name: NAME,
    version: Annotated[str, typer.Argument(help="the version")],
    label: Annotated[str, typer.Argument(help="such as candidate; production wants a verdict")],
    reason: REASON,
) -> None:
    """Let a label name a version. Only one that the gate let through becomes `production`."""
    from pipelines.prompt_promotion import LabelOrder
    from pipelines.prompt_promotion import label as put

    with open_state() as state, looked_up():
        _tell(put(state.database, LabelOrder(name, version, label, state.actor, reason)))


@app.command()
def rollback(
    name: NAME,
    reason: REASON,
    from_version: Annotated[
        str | None, typer.Option(help="only if this version is in production still")
    ] = None,
) -> None:
    """Back to the production version before, at once."""
    from pipelines import prompt_promotion

    with open_state() as state, looked_up():
        order = prompt_promotion.PromptRollback(name, state.actor, reason, from_version)
        _tell(prompt_promotion.rollback(state.database, order))


@contextmanager
def _version(name: str, which: str) -> Iterator[tuple[PromptVersionRow, Mapping[str, str]]]:
    """A version and the prompt's labels; mistakes end the command with a message."""
    from pipelines.prompt_labels import require_version

    with open_state() as state, looked_up():
        with state.database.session() as session:
            found = require_version(session, name, which), labels_of(session, name)
        yield found


def _said(one: "Synced") -> str:
    what = "new" if one.made else "as it was"
    line = f"{one.name}: version {one.version} {one.content_hash[:SHOWN_DIGITS]}, {what}"
    line += f", from {_commit(one.git_sha)}"
    return line + (f", {PRODUCTION} from now on" if one.labelled else "")


def _notes(
    state: State, done: Sequence["Synced"], models: Mapping[str, Any], sources: Sequence[Any]
) -> Iterator[str]:
    for one in done:
        if one.made and (one.git_sha is None or one.git_sha.endswith("-dirty")):
            where = "is not in Git" if one.git_sha is None else "is not committed as it is"
            yield f"note: the file of {one.name} {where}: nobody can look the version up there"
    with state.database.session() as session:
        for one in done:
            if PRODUCTION not in labels_of(session, one.name):
                yield (
                    f"note: {one.name} has no production version: requests have to name a version "
                    "or a label; --first-label makes this one production"
                )
    for model in sorted({source.prompt.model for source in sources} - models.keys()):
        if "*" not in models:
            yield f"note: no model {model} is configured here; requests have to name another one"


def _under_way(session: "Session", name: str) -> str:
    """A line on the experiment that shares the prompt's production traffic; empty if none does."""
    from gateway.variants import PROMPT_SPLIT
    from pipelines.champion import running_experiment

    row = running_experiment(session, PROMPT_SPLIT + name)
    if row is None:
        return ""
    shares = " and ".join(
        f"{arm['weight']:.0%} get version {arm['variant']['prompt_version']}" for arm in row.arms
    )
    return f"{name}: of {PRODUCTION}'s users {shares} (experiment {row.experiment_id})\n"


def _commit(git_sha: str | None) -> str:
    if git_sha is None:
        return "no commit"
    sha, dash, dirty = git_sha.partition("-")
    return sha[:SHOWN_DIGITS] + dash + dirty


def _plain(
    row: PromptVersionRow, labels: Mapping[str, str], content: bool = False
) -> dict[str, Any]:
    shown = {
        "name": row.name,
        "version": row.version,
        "content_hash": row.content_hash,
        "git_sha": row.git_sha,
        "path": row.path,
        "created_at": row.created_at.isoformat(),
        "labels": dict(labels),
    }
    return shown | {"content": row.content} if content else shown


def _text(prompt: Prompt) -> str:
    """A version for people and for a diff: messages as they are, the rest as YAML."""
    content = dict(prompt.content)
    parts = [f"[{message['role']}]\n{message['content']}" for message in content.pop("messages")]
    rest = yaml.safe_dump(content, sort_keys=True, allow_unicode=True)
    return "\n\n".join([*(part.rstrip("\n") for part in parts), rest])


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise failed(f"--vars: {path}: {error}") from error
    if not isinstance(given, dict):
        raise failed(f"--vars: {path}: an object with the variables is wanted")
    return given


def _from_options(prompt: Prompt, given: Sequence[str]) -> dict[str, Any]:
    texts = {one.name for one in prompt.variables if one.type == "string"}
    values: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise failed(f"--var: {item!r}: NAME=VALUE is wanted")
        try:
            values[name] = value if name in texts else orjson.loads(value)
        except orjson.JSONDecodeError:
            values[name] = value  # the prompt says of which type it has to be
    return values


def _tell(done: "Labelled") -> None:
    if done.repeated:
        typer.echo(f"nothing changed: {done.label} of {done.name} is version {done.version}")
        return
    if done.stopped is not None:
        typer.echo(f"experiment {done.stopped} was stopped")
    before = "" if done.before in (None, done.version) else f", was {done.before}"
    typer.echo(f"{done.label} of {escape(done.name)} is version {done.version}{before}")
    typer.echo("the gateway follows within two seconds, MLflow's alias when MLflow is there")
