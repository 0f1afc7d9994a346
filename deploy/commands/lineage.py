"""`llmops lineage ID` walks from any id both ways; `lineage check` proves the chain whole."""

from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree
from typer.core import TyperGroup

from deploy.commands.lifecycle import installation_of
from deploy.commands.state import failed, open_state
from gateway.lineage import Edge, Lineage, Links, Node, lineage
from gateway.lineage_links import GatewayLinks
from gateway.request_log import LogUnavailable
from pipelines.approval_links import ApprovalLinks
from pipelines.lineage_links import PipelineLinks
from pipelines.prompt_links import PromptLinks
from pipelines.snapshot_links import SnapshotLinks

if TYPE_CHECKING:
    from deploy.demo.stage import Chain
    from pipelines.installation import Installation
    from pipelines.lineage_findings import Report, Sources

SHOWN = (
    "decision", "rule", "action", "kind", "alias", "name", "version", "tenant", "model", "status",
    "metric_name", "value", "state", "labels", "from_version", "to_version", "champion", "adapter",
    "served_name",
    "variant",
    "subject", "baseline", "actor", "asked_by", "decided_by",
    "ts", "created_at", "started_at", "user", "input_tokens",
    "output_tokens", "cost_usd", "git_sha", "blocked", "deleted_at",
)  # fmt: skip
TIMES = ("ts", "created_at", "started_at", "deleted_at")
LONGEST = 60
TO_SECONDS = len("2026-01-31T12:00:00")
PIPED_WIDTH = 400
FEW = 5
STYLES = {"ok": "green", "erased": "yellow", "broken": "bold red"}


class IdOrCommand(TyperGroup):
    """What is none of its commands is an id to show; `lineage show check` shows an id `check`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in that was left out."""
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, ["show", *args] if args and not named else args)


app = typer.Typer(
    cls=IdOrCommand,
    no_args_is_help=True,
    help="Follow any id through everything it is linked with: llmops lineage ID.",
)


@app.command()
def show(
    identifier: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="request, feedback, key, team, episode, upstream id; data set, training, verdict, "
            "run, experiment, promotion, trigger event; NAME/VERSION, adapter, alias; prompt:NAME, "
            "NAME@VERSION",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="nodes and edges as JSON")] = False,
) -> None:
    """Walk from any id to what it was made with and what came of it; `show` may be left out."""
    with open_state() as state:
        found = _found(installation_of(state), identifier)
    if as_json:
        typer.echo(orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2).decode())
        return
    console = _console()
    for start in found.starts:
        console.print(drawn(found, start), highlight=False)
    if found.truncated:
        console.print(f"cut off at {len(found.nodes)} nodes", style="yellow")


@app.command()
def check(
    name: Annotated[
        str | None, typer.Argument(help="a registered model, or prompt:NAME; all by default")
    ] = None,
    champion: Annotated[
        bool, typer.Option("--champion", help="only the version that is champion now")
    ] = False,
    data: Annotated[
        bool, typer.Option(help="fetch the data sets' files through DVC and check them")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="links as JSON")] = False,
) -> None:
    """Check every link from the promotion to the first feedback: database, log, files, MLflow.

    Exit code 1 if a link is broken; the table says which, and what to do.
    """
    from pipelines import lineage_check

    if champion and name is None:
        raise failed("--champion: say of which model: llmops lineage check NAME --champion")
    with open_state() as state:
        try:
            sources = sources_of(installation_of(state), data=data)
            report = (
                lineage_check.check_champion(sources, name)
                if champion and name is not None
                else lineage_check.check(sources, name)
            )
        except LogUnavailable as error:
            raise failed(str(error)) from error
    if as_json:
        typer.echo(orjson.dumps(_plain(report), option=orjson.OPT_INDENT_2).decode())
    else:
        _print(report)
    if not report.whole:
        raise typer.Exit(1)


def chain(installation: "Installation", name: str, identifier: str, version: str) -> "Chain":
    """The lineage of `identifier` as text, and the check of a version of `name`.

    Raises what `lineage` and the request log raise.
    """
    from deploy.demo.stage import Chain
    from pipelines.lineage_check import check_one

    found = _found(installation, identifier)
    report = check_one(sources_of(installation), name, version)
    console = Console(width=PIPED_WIDTH, force_terminal=False, no_color=True)
    with console.capture() as captured:
        for start in found.starts:
            console.print(drawn(found, start), highlight=False)
    broken = [f"{link.of} → {link.to}: {link.found}" for link in report.broken]
    return Chain(
        text=captured.get(),
        ids=frozenset(node.id for node in found.nodes.values()),
        complete=report.whole,
        check="; ".join([report.summary, *broken]),
    )


def sources_of(installation: "Installation", *, data: bool = True) -> "Sources":
    """Where the check looks in an installation; ConfigurationError if it has no MLflow."""
    from pipelines.lineage_findings import Sources
    from pipelines.lineage_mlflow import MLflowFacts
    from pipelines.workspace import workspace_of

    return Sources(
        database=installation.database,
        reader=installation.reader,
        mlflow=MLflowFacts(installation.tracking_uri()),
        fetch=(
            (lambda name, dataset_id: workspace_of(installation, name).checkout(dataset_id))
            if data
            else None
        ),
        retain_days=installation.configuration.log.retain_days,
    )


def drawn(found: Lineage, start: str) -> Tree:
    """The node `start` with its causes above all, then its effects.

    What was drawn once is not unfolded again; of many things of one kind the first are drawn.
    """
    tree = Tree(label(found.nodes[start]))
    if found.causes(start):
        _Drawing(found, causes=True).draw(start, tree.add("made with"))
    if found.effects(start):
        _Drawing(found, causes=False).draw(start, tree.add("led to"))
    return tree


class _Drawing:
    """One direction of a lineage, as it is drawn."""

    def __init__(self, found: Lineage, *, causes: bool):
        self._found = found
        self._causes = causes
        self._drawn: set[str] = set()

    def draw(self, name: str, tree: Tree) -> None:
        """Put what `name` is linked with under `tree`."""
        self._drawn.add(name)
        for (relation, kind), edges in self._groups(name).items():
            total = self._total(name, relation, kind, len(edges))
            if total <= FEW:
                self._all(edges, tree, f"{relation} ")
                continue
            counted = f"{relation} {total} {_plural(kind)}, first {FEW} shown"
            self._all(edges[:FEW], tree.add(Text(counted, "bold")), "")

    def _all(self, edges: list[Edge], tree: Tree, relation: str) -> None:
        for edge in edges:
            other = edge.cause if self._causes else edge.effect
            text = Text(relation, "dim") + label(self._found.nodes[other])
            if other not in self._drawn:
                self.draw(other, tree.add(text))
            elif self._edges(other):
                tree.add(text + Text("  (see above)", "dim italic"))
            else:
                tree.add(text)

    def _edges(self, name: str) -> list[Edge]:
        return self._found.causes(name) if self._causes else self._found.effects(name)

    def _groups(self, name: str) -> dict[tuple[str, str], list[Edge]]:
        groups: dict[tuple[str, str], list[Edge]] = {}
        for edge in self._edges(name):
            other = self._found.nodes[edge.cause if self._causes else edge.effect]
            groups.setdefault((edge.relation, other.kind), []).append(edge)
        return groups

    def _total(self, name: str, relation: str, kind: str, shown: int) -> int:
        wanted = (name, relation, kind, self._causes)
        for one in self._found.bundles:
            if (one.node, one.relation, one.kind, one.to_causes) == wanted:
                return one.total
        return shown


def label(node: Node) -> Text:
    """One line: kind, id and the details that fit."""
    text = Text(f"{node.kind} ", "bold") + Text(node.id, "cyan")
    for name in SHOWN:
        value = node.details.get(name)
        if value is not None and (name, value) != ("blocked", False):
            length = TO_SECONDS if name in TIMES else LONGEST
            text += Text(f"  {name}={str(value)[:length]}", "dim")
    return text


def _found(installation: "Installation", identifier: str) -> Lineage:
    reader, database = installation.reader, installation.database
    parts = GatewayLinks, PipelineLinks, PromptLinks, ApprovalLinks
    links: list[Links] = [*(part(database, reader) for part in parts), SnapshotLinks(database)]
    try:
        return lineage(identifier, links)
    except LogUnavailable as error:
        raise failed(str(error)) from error


def _print(report: "Report") -> None:
    table = Table(
        Column("of", overflow="fold"),
        Column("link", overflow="fold"),
        "",
        Column("found"),
        box=None,
    )
    for link in report.links:
        state = Text(link.state, STYLES[link.state])
        table.add_row(Text(link.of), Text(link.to), state, Text(link.found))
    console = _console()
    console.print(table)
    for link in report.broken:
        console.print(Text(f"broken: {link.of} → {link.to}: {link.found}", STYLES["broken"]))
    console.print(Text(report.summary, "bold"))


def _plain(report: "Report") -> dict[str, Any]:
    links = [
        {"of": link.of, "to": link.to, "state": link.state.value, "found": link.found}
        for link in report.links
    ]
    return {"versions": list(report.versions), "whole": report.whole, "links": links}


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def _plural(kind: str) -> str:
    return kind if kind == "feedback" else f"{kind.replace('_', ' ')}s"
