"""The `llmops` command: a table of subcommands, each imported when it is called."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as click_command


@dataclass(frozen=True, slots=True)
class Subcommand:
    """A module that holds `app`, a Typer, and the line of help shown in the table."""

    module: str
    help: str


COMMANDS: Mapping[str, Subcommand] = MappingProxyType(
    {
        "up": Subcommand("up", "Start the stack, or the gateway alone, and print a ready key."),
        "down": Subcommand("down", "Stop everything that up started."),
        "status": Subcommand("status", "Show each part and whether it is healthy."),
        "logs-of": Subcommand("logs_of", "Show or follow the output of a part."),
        "doctor": Subcommand("doctor", "Check packages, memory, disk, ports and configuration."),
        "check": Subcommand("check", "Validate a configuration file."),
        "keys": Subcommand("keys", "Make, list, change and block virtual keys and teams."),
        "logs": Subcommand("logs", "Read and keep the request log."),
        "costs": Subcommand("costs", "Sum tokens and money; reconcile them with node-hours."),
        "feedback": Subcommand("feedback", "Read and check feedback."),
        "data": Subcommand("data", "Freeze, list, compare and fetch the data of tabular models."),
        "train": Subcommand("train", "Feedback to data set, training, gate and registry."),
        "new": Subcommand("new", "Write the spec file of a new model."),
        "reproduce": Subcommand("reproduce", "Do a former training run again, and compare."),
        "experiment": Subcommand(
            "experiment", "Try a version of a model or a prompt on live traffic."
        ),
        "promote": Subcommand("promote", "Make a model version the champion of an alias."),
        "approve": Subcommand("approve", "Grant or refuse promotions that ask for leave."),
        "rollback": Subcommand("rollback", "Go back to the champion before, at once."),
        "reconcile": Subcommand(
            "reconcile", "Bring KServe's InferenceServices to what the registry says."
        ),
        "prompts": Subcommand("prompts", "Prompts of the library: versions, labels, evaluations."),
        "evals": Subcommand("evals", "Evaluate prompts, make golden cases, calibrate judges."),
        "drift": Subcommand("drift", "Compare recent traffic with a pinned reference."),
        "schedule": Subcommand("schedule", "Run evaluations and drift checks when they are due."),
        "audit": Subcommand("audit", "Show who changed what, when and why."),
        "lineage": Subcommand("lineage", "Follow any id through everything it is linked with."),
        "demo": Subcommand("demo", "The whole loop, once around, with simulated users."),
    }
)


class LazyGroup(TyperGroup):
    """Shows the table without importing a subcommand; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the table's order."""
        return [name for name, entry in COMMANDS.items() if _exists(entry)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; None if there is none of that name."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        entry = COMMANDS.get(cmd_name)
        if entry is None or not _exists(entry):
            return None
        module = importlib.import_module(f"deploy.commands.{entry.module}")
        command = click_command(module.app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Stand-ins with the help line are enough for the table."""
        self.commands = {
            name: TyperCommand(name, callback=None, help=COMMANDS[name].help)
            for name in self.list_commands(ctx)
        }
        super().format_help(ctx, formatter)


def _exists(entry: Subcommand) -> bool:
    return importlib.util.find_spec(f"deploy.commands.{entry.module}") is not None


app = typer.Typer(
    name="llmops",
    cls=LazyGroup,
    help="An OpenAI-compatible LLM gateway, its request log, keys, costs and feedback.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def llmops() -> None:
    """An OpenAI-compatible LLM gateway, its request log, keys, costs and feedback."""


def main() -> None:
    """Entry of the command."""
    app()


if __name__ == "__main__":
    main()
