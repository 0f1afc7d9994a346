"""`llmops keys`, `keys teams` and `audit`, as a person runs them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.database import open_database
from gateway.key_ring import KeyRing
from gateway.settings import load_settings
from tests.gateway_process import ROOT


class Home:
    """A fresh LLMOPS_HOME and the command on it."""

    def __init__(self, folder: Path):
        self.environ = {**os.environ, "LLMOPS_HOME": str(folder / "home")}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy.cli", *arguments],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def out(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return orjson.loads(self.out(*arguments))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_keys_from_the_first_to_the_last_command(home: Home) -> None:
    team = home.json("keys", "teams", "new", "blue", "--model", "m1", "--model", "m2")
    key = home.out(
        "keys", "generate", "--alias", "chat", "--team", "blue", "--model", "m1", "--duration",
        "30d", "--fields", '{"bodies": "off", "metadata": {"a": 1}}', "--reason", "new app",
    ).strip()  # fmt: skip
    settings = load_settings(home.environ)
    database = open_database(settings.database_url)
    ring = KeyRing(database, settings.key_digest_secret())
    ring.load()
    found = ring.find(key)
    assert found is not None
    assert (found.team, found.models, found.bodies) == ("blue", frozenset({"m1"}), "off")
    info = home.json("keys", "info", key)
    assert (info["alias"], info["team_id"]) == ("chat", team["team_id"])
    assert home.json("keys", "update", info["key_id"], "--duration", "-1")["expires_at"] is None
    assert home.json("keys", "block", info["key_id"], "--reason", "leaked")["blocked"] is True
    listed = home.out("keys", "list")
    assert info["key_id"] in listed
    assert "blocked" in listed
    assert key not in listed
    home.out("keys", "teams", "update", "blue", "--every-model")
    home.out("keys", "teams", "delete", "blue")
    assert home.json("keys", "info", key)["deleted_at"]
    ring.load()
    assert ring.find(key) is None
    rows = [orjson.loads(line) for line in home.out("audit", "--json").splitlines()]
    assert [row["action"] for row in rows][::-1] == [
        "team.new", "key.generate", "key.update", "key.block", "team.update", "key.delete",
        "team.delete",
    ]  # fmt: skip
    assert all(row["actor"].startswith("cli:") for row in rows)
    assert "blocked=True" in home.out("audit", "--action", "key.block")
    assert home.out("audit", "--json", "--limit", "1").count("\n") == 1
    database.close()


def test_a_new_key_is_alone_on_standard_output(home: Home) -> None:
    done = home.run("keys", "generate")
    assert done.stdout.strip().startswith("sk-")
    assert done.stdout.count("\n") == 1
    assert done.stdout.strip() not in done.stderr
    shown = home.json("keys", "generate", "--json")
    assert shown["key"].startswith("sk-")
    assert shown["key_id"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keys", "info", "nothing"), "there is no such key"),
        (("keys", "generate", "--duration", "soon"), "duration"),
        (("keys", "generate", "--team", "nothing"), "no team"),
        (("keys", "generate", "--fields", "{"), "not JSON"),
        (("keys", "generate", "--fields", "[]"), "JSON object"),
        (("keys", "generate", "--fields", '{"shoe": 1}'), "shoe"),
        (("keys", "teams", "info", "nothing"), "no team"),
    ],
)
def test_mistakes_are_one_line(home: Home, arguments: tuple[str, ...], message: str) -> None:
    done = home.run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
