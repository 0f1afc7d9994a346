"""The feature repository: a person can apply it, and so do servers that start together."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
FEAST = Path(sys.executable).parent / "feast"
OPEN = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from gateway.feature_store import open_feature_store
url = "redis://user:0123@127.0.0.1:9/2"
with ThreadPoolExecutor() as pool:
    home = Path(sys.argv[1])
    opened = [pool.submit(open_feature_store, home, url, key_ttl_seconds=60) for _ in "1234"]
for store in opened:
    print(*(service.name for service in store.result().list_feature_services()))
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_person_can_apply_it(tmp_path: Path):
    repository = tmp_path / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", repository, ignore=shutil.ignore_patterns("__pycache__"))
    assert "embeddings" in run(FEAST, "apply", folder=repository)
    assert (tmp_path / ".llmops" / "feature_registry.db").is_file()


def test_servers_that_start_together_agree(tmp_path: Path):
    home = tmp_path / "home"
    output = run(sys.executable, "-c", OPEN, home, folder=ROOT)
    services = ["arrival_delay", "cancellation", "embedding_cache"]
    assert [sorted(line.split()) for line in output.splitlines()] == [services] * 4
    written = home / "feature_store.yaml"
    assert written.stat().st_mode & 0o077 == 0
    configuration: dict[str, Any] = yaml.safe_load(written.read_text())
    connection = configuration["online_store"]["connection_string"]
    assert connection.startswith("127.0.0.1:9,db=2,")
    assert 'username="user"' in connection and 'password="0123"' in connection
    listed = run(
        FEAST,
        "-c",
        ROOT / "feature_repo",
        "-f",
        written,
        "feature-services",
        "list",
        folder=tmp_path,
    )
    assert "embedding_cache" in listed


def test_only_definitions_are_there():
    files = {path.name for path in (ROOT / "feature_repo").iterdir() if path.suffix}
    assert files <= {"embeddings.py", "flights.py", "feature_store.yaml", "__init__.py"}
