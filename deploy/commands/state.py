"""The state database as commands use it: set up, opened, and its refusals said in one line."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer
from sqlalchemy.exc import SQLAlchemyError

from deploy.migrations import upgrade
from gateway.configuration import ConfigurationError
from gateway.database import Database, open_database
from gateway.errors import GatewayError
from gateway.keys import KeyStore
from gateway.settings import Settings, SettingsError, load_settings


@dataclass(frozen=True, slots=True)
class State:
    """What a command works with; `actor` is told to the audit trail."""

    settings: Settings
    database: Database
    keys: KeyStore
    actor: str


@contextmanager
def open_state() -> Iterator[State]:
    """The state database of this installation, at the newest schema.

    What goes wrong inside ends the command: a message on standard error, exit status 1.
    """
    try:
        settings = load_settings()
        upgrade(settings.database_url)
        database = open_database(settings.database_url)
        try:
            keys = KeyStore(database, settings.key_digest_secret())
            yield State(settings, database, keys, actor=f"cli:{user_name()}")
        finally:
            database.close()
    except GatewayError as error:
        raise failed(error.message) from error
    except (ConfigurationError, SettingsError, ValueError) as error:
        raise failed(str(error)) from error
    except SQLAlchemyError as error:
        raise failed(f"the state database: {error}") from error


def failed(message: str) -> typer.Exit:
    """Say `message` on standard error; raise what is returned to end the command."""
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(1)


def user_name() -> str:
    """Name of the account that runs the command."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
