"""The documents say what is true: links lead somewhere, commands exist, endpoints are served."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from deploy.cli import COMMANDS, app
from gateway.app import UNSUPPORTED
from gateway.request_path import ENDPOINTS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"`(?:\.venv/bin/)?llmops ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document):
    root: Any = get_command(app)
    for name, subcommand in COMMAND.findall(document.read_text()):
        assert name in COMMANDS, f"llmops {name}"
        command = root.get_command(None, name)
        if subcommand and hasattr(command, "commands"):
            assert subcommand in command.commands, f"llmops {name} {subcommand}"


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text())) <= targets


def test_the_api_page_lists_what_is_served_and_what_is_not():
    page = (ROOT / "docs" / "api.md").read_text()
    for endpoint in ENDPOINTS:
        assert f"POST /v1{endpoint.path}`" in page
    missing = page.partition("Not offered")[2].partition("##")[0].replace("-", "_")
    for path in UNSUPPORTED:
        name = path.removeprefix("/v1/").replace("vector_stores", "vector\nstores")
        assert name in missing or name.replace("\n", " ") in missing, path
