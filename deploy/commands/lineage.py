"""`llmops lineage ID`: what a thing was made with and what came of it."""

from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from deploy.commands.state import failed, open_state
from gateway.configuration import load_configuration
from gateway.lineage import Lineage, Node, lineage
from gateway.lineage_links import GatewayLinks
from gateway.request_log import LogReader, LogUnavailable

SHOWN = (
    "alias", "tenant", "model", "status", "metric_name", "value", "state", "ts", "created_at",
    "user", "input_tokens", "output_tokens", "cost_usd", "git_sha", "blocked", "deleted_at",
)  # fmt: skip
LONGEST = 60
PIPED_WIDTH = 400

app = typer.Typer()


@app.command("lineage")
def show(
    identifier: Annotated[
        str, typer.Argument(help="a request, feedback, key, team, episode or upstream id")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="nodes and edges as JSON")] = False,
) -> None:
    """Walk from any id to what it was made with, and to what came of it."""
    with open_state() as state:
        configuration = load_configuration(state.settings.config_path)
        reader = LogReader.open(state.settings, configuration.log)
        try:
            found = lineage(identifier, [GatewayLinks(state.database, reader)])
        except LogUnavailable as error:
            raise failed(str(error)) from error
    if as_json:
        typer.echo(orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2).decode())
        return
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    for start in found.starts:
        console.print(drawn(found, start), highlight=False)


def drawn(found: Lineage, start: str) -> Tree:
    """The node `start` with its causes above all, then its effects."""
    tree = Tree(label(found.nodes[start]))
    if found.causes(start):
        _draw(found, start, tree.add("made with"), causes=True)
    if found.effects(start):
        _draw(found, start, tree.add("led to"), causes=False)
    return tree


def _draw(found: Lineage, name: str, tree: Tree, *, causes: bool) -> None:
    for edge in found.causes(name) if causes else found.effects(name):
        other = edge.cause if causes else edge.effect
        branch = tree.add(Text(f"{edge.relation} ", "dim") + label(found.nodes[other]))
        _draw(found, other, branch, causes=causes)


def label(node: Node) -> Text:
    """One line: kind, id and the details that fit."""
    text = Text(f"{node.kind} ", "bold") + Text(node.id, "cyan")
    for name in SHOWN:
        value = node.details.get(name)
        if value is not None and value is not False:
            text += Text(f"  {name}={str(value)[:LONGEST]}", "dim")
    return text
