"""Fixtures of the tests of triggers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.database import Database
from gateway.settings import load_settings
from tests.pipelines.trigger_office import Office
from tests.pipelines.webhook_receiver import Receiver, webhook_receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as made:
        yield made


@pytest.fixture
def office(database: Database, receiver: Receiver, tmp_path: Path) -> Office:
    environ = {"LLMOPS_HOME": str(tmp_path), "HOOK": receiver.url, "PAGER": "routing-key"}
    return Office(database, load_settings(environ), receiver)
