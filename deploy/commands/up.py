"""`llmops up`: start the stack, show how far it is, print what is needed to use it."""

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from deploy import configuration_file
from deploy.display import display_for
from deploy.keeper import KeeperError
from deploy.local import StackError, bring_up, refuse_second
from deploy.parts import Part, parts_of
from deploy.ready import print_ready
from deploy.stack import Stack, load_stack
from deploy.startup import StartupFailed
from gateway.configuration import Configuration, ConfigurationError
from gateway.settings import Settings, SettingsError, load_settings

app = typer.Typer()
PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True}


class EngineChoice(StrEnum):
    """What answers: vLLM on this machine, or nothing here."""

    VLLM = "vllm"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Plan:
    """A start: the file in force and what it asks for."""

    config_path: Path
    configuration: Configuration
    stack: Stack
    parts: list[Part]


@app.command()
def up(
    config: Annotated[Path | None, typer.Option(help="Configuration file to use.")] = None,
    engine: Annotated[EngineChoice, typer.Option(help="none: no vLLM here.")] = EngineChoice.VLLM,
    upstream: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible server, up to /v1.")
    ] = None,
    upstream_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with that server's API key.")
    ] = None,
    port: Annotated[int, typer.Option(help="With --upstream: the gateway's port.")] = 4000,
    admin_port: Annotated[int, typer.Option(help="With --upstream: the admin port.")] = 4001,
) -> None:
    """Start the stack, or with --engine none --upstream URL the gateway alone."""
    console = Console()
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as Ctrl-C does: tidily
        signal.signal(number, signal.default_int_handler)
    settings = load_settings()
    light = None
    if upstream is not None:
        light = {"url": upstream.rstrip("/")}
        if upstream_key_env:
            light["api_key_env"] = upstream_key_env
    try:
        refuse_second(settings.home)  # before a file is written that a running stack would read
        plan = make_plan(settings, config, engine, light, (port, admin_port))
        key = start(console, settings, plan)
    except StartupFailed as failure:
        _explain(console, failure)
        raise typer.Exit(1) from failure
    except (ConfigurationError, SettingsError, StackError, KeeperError) as error:
        console.print(f"[bold red]not started[/]\n{escape(str(error))}", **PLAIN)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        console.print("[bold red]interrupted[/]: everything that was started is stopped again")
        raise typer.Exit(130) from interrupt
    print_ready(console, settings, plan.configuration, plan.parts, key)


def make_plan(
    settings: Settings,
    config: Path | None,
    engine: EngineChoice,
    light: dict[str, Any] | None,
    ports: tuple[int, int],
) -> Plan:
    """What to start. Raises ConfigurationError."""
    if light is not None and (config is not None or engine is not EngineChoice.NONE):
        raise ConfigurationError(
            "--upstream goes with --engine none and without --config; "
            "in a file of your own, name the server under upstreams"
        )
    if light is not None:
        path = configuration_file.generate_light(settings, light, ports)
    else:
        path = configuration_file.in_force(settings, config)
    configuration, stack = load_stack(path)
    if light is not None:
        stack = _without(stack, "engine", "redis", "mlflow", "embeddings")
    elif engine is EngineChoice.NONE:
        stack = _without(stack, "engine")
    parts = parts_of(configuration, stack, settings)
    if light is not None:
        parts = without_uninstalled_shipper(parts)
    return Plan(path, configuration, stack, parts)


def start(console: Console, settings: Settings, plan: Plan) -> str:
    """Bring the plan's parts up; returns the development key."""
    keys: list[str] = []

    def before_parts() -> None:
        # SQLAlchemy takes 0.3 s to import, in which the keeper starts beside us.
        from deploy.development_key import prepare_state

        configuration_file.link(settings, plan.config_path)
        settings.admin_credential()
        keys.append(prepare_state(settings))

    config_path = configuration_file.linked(settings, plan.config_path)
    with display_for(console) as display:
        bring_up(settings, plan.parts, config_path, before_parts, display.show)
    return keys[0]


def without_uninstalled_shipper(parts: list[Part]) -> list[Part]:
    """Leave the shipper out where its packages are not installed: the spool keeps the log."""
    shipper = next((part for part in parts if part.name == "shipper"), None)
    if shipper is None or not any(requirement.missing() for requirement in shipper.requires):
        return parts
    return [part for part in parts if part is not shipper]


def _without(stack: Stack, *names: str) -> Stack:
    off = {name: getattr(stack, name).model_copy(update={"enabled": False}) for name in names}
    return stack.model_copy(update=off)


def _explain(console: Console, failure: StartupFailed) -> None:
    console.print(f"[bold red]not started[/]: {escape(str(failure))}", **PLAIN)
    for line in failure.tail:
        console.print(f"  {line}", markup=False, **PLAIN)
    console.print("everything that this start began is stopped again")
