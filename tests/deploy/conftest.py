"""A stack of scripted parts for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.scripted_parts import ScriptedStack, scripted_stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ScriptedStack]:
    with scripted_stack(tmp_path / "home") as stack:
        yield stack
