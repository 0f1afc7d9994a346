"""What the commands of the lifecycle share: the installation, and failures said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from deploy.commands.state import State, failed
from gateway.configuration import load_configuration
from gateway.request_log import LogReader

if TYPE_CHECKING:
    from pipelines.installation import Installation


def installation_of(state: State) -> "Installation":
    """The installation that a command's state database belongs to."""
    from pipelines.installation import Installation

    configuration = load_configuration(state.settings.config_path)
    reader = LogReader.open(state.settings, configuration.log)
    return Installation(state.settings, configuration, state.database, reader)


@contextmanager
def looked_up() -> Iterator[None]:
    """End the command with a message where an engine, MLflow or a stage did not do its part."""
    try:
        yield
    except typer.Exit:
        raise  # a RuntimeError too, of a message that was said already
    except (RuntimeError, OSError) as error:
        raise failed(str(error)) from error
