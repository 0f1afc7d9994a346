"""`llmops new`: a spec file to begin a model with."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from gateway.configuration import ConfigurationError

TEMPLATES = Path(__file__).parents[1] / "templates"
TABULAR_CONFIGURATION = """\
It is trained and asked under an alias, which the configuration has to have, with its label:
  models: {{{name}: {{upstream: kserve, price: {{predictions: 0}}}}}}
  feedback: {{metrics: {{{label}: {{type: boolean, optimize: min}}}}}}"""
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="the model's name, such as flight-delay")]
Out = Annotated[Path | None, typer.Option(help="file to write; NAME.yaml by default")]


@app.command()
def tabular(
    name: Name,
    label: Annotated[str, typer.Option(help="boolean column that is predicted")] = "late",
    service: Annotated[str, typer.Option(help="feature service")] = "arrival_delay",
    source: Annotated[str, typer.Option(help="source of the events")] = "flights",
    out: Out = None,
) -> None:
    """Write the spec of a tabular model."""
    from gateway.feature_schema import feature_schema
    from gateway.feature_store import FeatureStoreError
    from pipelines.snapshots import source_of

    try:
        source_of(source)
        feature_schema(service)
    except (ConfigurationError, FeatureStoreError) as error:
        raise typer.BadParameter(str(error)) from error
    given = {"label": label, "service": service, "source": source}
    _write("tabular", name, out, given, "llmops train tabular")
    typer.echo(TABULAR_CONFIGURATION.format(name=name, label=label))


@app.command()
def llm(name: Name, out: Out = None) -> None:
    """Write the spec of a language model."""
    _write("llm", name, out, {}, "llmops train llm")


def _write(kind: str, name: str, out: Path | None, given: Mapping[str, str], command: str) -> None:
    if not NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r}: lower-case letters, digits and hyphens are wanted")
    file = out or Path(f"{name}.yaml")
    template = Template((TEMPLATES / f"{kind}.yaml").read_text())
    text = template.substitute(given, name=name, file=file)
    try:
        with file.open("x") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise typer.BadParameter(f"{file} is there already") from error
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error
    typer.echo(f"{file}: {len(text.splitlines())} lines; next: {command} {file}")
