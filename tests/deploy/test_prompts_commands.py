"""`llmops prompts` as a person runs it, on a real MLflow and in front of a real worker."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import uuid_utils
import yaml
from typer.testing import CliRunner

from deploy.cli import app
from evals.records import Decision, Verdict
from evals.verdicts import add_verdict
from gateway.database import now, open_database
from gateway.prompt_versions import find_version
from pipelines.prompt_labels import subject_of
from pipelines.prompt_registry import PromptRegistry
from tests.gateway_process import ROOT, GatewayProcess, configuration, free_port
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.prompt_files import PromptFolder
from tests.scripted_upstream import ScriptedUpstreamProcess

IN_FORCE_SECONDS = 2.0
UNCHANGED_SECONDS = 5.0


class Home:
    """A gateway's home with a repository of prompts, and the command on it."""

    def __init__(self, folder: Path, upstream: str, mlflow: str):
        self.given = configuration(upstream, mlflow={"tracking_uri": mlflow})
        self.gateway = GatewayProcess(folder / "home", self.given)
        self.files = PromptFolder(folder / "repository")

    def run(self, *arguments: str) -> Any:
        done = CliRunner().invoke(app, ["prompts", *arguments], env=self.gateway.environ)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def out(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.exit_code == 0, done.stderr
        return str(done.stdout)

    def json(self, *arguments: str) -> Any:
        return orjson.loads(self.out(*arguments))

    def refused(self, *arguments: str) -> str:
        """What a command that fails says; nothing else is printed."""
        done = self.run(*arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        return str(done.stderr).removeprefix("error: ")

    def sync(self, *arguments: str) -> Any:
        return self.run("sync", "--folder", str(self.files.folder), *arguments)

    def process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as a process of its own; the others run in this one, which is quicker."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.cli", "prompts", *arguments],
            cwd=ROOT,
            env=self.gateway.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def let_through(self, name: str, version: str, baseline: str) -> None:
        """A verdict of the gate on a version."""
        database = open_database(self.gateway.settings.database_url)
        with database.transaction() as session:
            one, other = (find_version(session, name, number) for number in (version, baseline))
            assert one is not None and other is not None
            verdict = Verdict(
                str(uuid_utils.uuid7()), subject_of(one.prompt), subject_of(other.prompt),
                Decision.PROMOTE, (), ("better",), {}, now(),
            )  # fmt: skip
            add_verdict(session, verdict)
        database.close()

    def asked_version(self, name: str) -> str:
        """The version that a request without a label gets now."""
        body = {"prompt_id": name, "prompt_variables": {"who": "Ann"}}
        request = urllib.request.Request(
            f"{self.gateway.url}/v1/chat/completions",
            orjson.dumps(body),
            {"authorization": f"Bearer {self.gateway.key}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.headers["x-prompt-version"])
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code}"

    def seconds_until(self, name: str, version: str) -> float:
        began = time.monotonic()
        while self.asked_version(name) != version:
            assert time.monotonic() - began < IN_FORCE_SECONDS
            time.sleep(0.02)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstreamProcess]:
    with ScriptedUpstreamProcess() as process:
        yield process


@pytest.fixture
def home(tmp_path: Path, upstream: ScriptedUpstreamProcess, mlflow_server: MLflowServer) -> Home:
    return Home(tmp_path, upstream.url, mlflow_server.url)


@pytest.fixture
def twice(home: Home) -> Home:
    """A prompt with two versions, the first in production."""
    home.files.write("cli-twice")
    home.files.commit()
    assert home.sync().exit_code == 0
    home.files.write("cli-twice", "Welcome")
    home.files.commit()
    assert home.sync().exit_code == 0
    return home


def test_from_the_first_sync_to_the_rollback_of_live_requests(home: Home, mlflow_server) -> None:
    name = "cli-live"
    home.files.write(name)
    sha = home.files.commit()
    home.gateway.start()
    try:
        said = home.sync().stdout
        assert said.startswith(f"{name}: version 1 ")
        assert said.rstrip().endswith(f"new, from {sha[:12]}, production from now on")
        home.seconds_until(name, "1")

        home.files.write(name, "Welcome")
        assert "version 2" in home.sync().stdout
        assert "no verdict on it" in home.refused("label", name, "2", "production", "--reason", "r")
        home.let_through(name, "2", "1")
        moved = home.out("label", name, "2", "production", "--reason", "the gate let it through")
        assert f"production of {name} is version 2, was 1" in moved
        home.seconds_until(name, "2")

        done = home.process("rollback", name, "--reason", "users complain", "--from-version", "2")
        began = time.monotonic()
        assert done.returncode == 0, done.stderr
        assert f"production of {name} is version 1, was 2" in done.stdout
        home.seconds_until(name, "1")
        assert time.monotonic() - began < IN_FORCE_SECONDS
        again = home.out("rollback", name, "--reason", "users complain", "--from-version", "2")
        assert f"nothing changed: production of {name} is version 1" in again
        assert "first version" in home.refused("rollback", name, "--reason", "more")
    finally:
        home.gateway.stop()
    trail = CliRunner().invoke(
        app, ["audit", "--json", "--subject", f"prompt:{name}"], env=home.gateway.environ
    )
    rows = [orjson.loads(line) for line in trail.stdout.splitlines()]
    assert [row["action"] for row in rows] == ["prompt.rollback", "prompt.promote", "prompt.first"]
    assert all(row["actor"].startswith("cli:") and row["reason"] for row in rows)


def test_sync_says_what_is_new_and_is_quick_where_nothing_is(twice: Home) -> None:
    began = time.monotonic()
    done = twice.process("sync", "--folder", str(twice.files.folder))
    assert time.monotonic() - began < UNCHANGED_SECONDS * 3  # most of it Python's own start
    assert done.returncode == 0
    assert done.stdout.startswith("cli-twice: version 2 ")
    assert "as it was" in done.stdout and "production" not in done.stdout
    twice.files.write("cli-more")
    done = twice.sync()
    assert "cli-more: version 1" in done.stdout
    assert "the file of cli-more is not committed as it is" in done.stderr
    assert "cli-more has no production version" in done.stderr
    done = twice.sync("--first-label")
    assert "production from now on" in done.stdout
    assert "no production version" not in done.stderr


def test_a_model_that_is_not_configured_is_noted(home: Home) -> None:
    home.given["models"] = {"other": home.given["models"]["*"]}
    home.gateway.write(home.given)
    home.files.write("cli-model")
    done = home.sync()
    assert done.exit_code == 0
    assert "note: no model chat is configured here" in done.stderr


def test_list_show_and_diff(twice: Home) -> None:
    twice.out("label", "cli-twice", "2", "candidate", "--reason", "to be tried")
    assert "candidate 2" in twice.out("list")
    (listed,) = twice.json("list", "--json")
    assert listed["labels"] == {"production": "1", "candidate": "2"}
    assert (listed["version"], listed["path"]) == ("2", "prompts/cli-twice.yaml")
    shown = twice.out("show", "cli-twice")
    assert shown.startswith("cli-twice version 1 (production)\n")
    assert "[user]\nGreet {{ who }}\n" in shown
    assert "max_tokens: 9" in shown
    assert "Welcome {{ who }}" in twice.out("show", "cli-twice", "candidate")
    whole = twice.json("show", "cli-twice", "2", "--json")
    assert whole["content"]["messages"] == [{"role": "user", "content": "Welcome {{ who }}"}]
    changed = twice.out("diff", "cli-twice", "production", "2").splitlines()
    assert changed[:2] == ["--- cli-twice version 1", "+++ cli-twice version 2"]
    assert [line for line in changed if line[0] in "+-"][2:] == [
        "-Greet {{ who }}", "+Welcome {{ who }}",
    ]  # fmt: skip
    assert "are the same" in twice.out("diff", "cli-twice", "1", "production")


def test_render(home: Home, tmp_path: Path) -> None:
    path = home.files.write("cli-render")
    text = path.read_text().replace(
        "Greet {{ who }}", "{% for x in xs %}{{ x.id }} {% endfor %}{{ who }}"
    )
    path.write_text(text.replace("- {name: who}", "- {name: who}\n  - {name: xs, type: list}"))
    assert home.sync().exit_code == 0
    xs = 'xs=[{"id": "a"}, {"id": "b"}]'
    assert home.out("render", "cli-render", "--var", "who=1", "--var", xs) == "user:\na b 1\n\n"
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump({"who": "Ann = Ben", "xs": []}))
    assert home.json("render", "cli-render", "1", "--vars", str(given), "--json") == [
        {"role": "user", "content": "Ann = Ben"}
    ]
    assert (
        home.out("render", "cli-render", "--vars", str(given), "--var", "who=C") == "user:\nC\n\n"
    )
    refused = home.refused("render", "cli-render", "--var", "what=1", "--var", "xs=text")
    assert "what: unknown; who: missing; xs: must be of type list" in refused
    assert "NAME=VALUE" in home.refused("render", "cli-render", "--var", "who")
    given.write_text("- no\n- object")
    assert "an object with the variables" in home.refused(
        "render", "cli-render", "--vars", str(given)
    )
    assert "nowhere" in home.refused("render", "cli-render", "--vars", str(tmp_path / "nowhere"))


def test_mistakes_are_said_and_nothing_is_done(home: Home, tmp_path: Path) -> None:
    assert "there is no prompt here" in home.out("list")
    for command in (
        ["show", "none"], ["diff", "none", "1", "2"], ["render", "none"],
        ["label", "none", "1", "candidate", "--reason", "r"], ["rollback", "none", "--reason", "r"],
    ):  # fmt: skip
        assert "there is no prompt 'none'" in home.refused(*command)
    home.files.write("cli-good")
    home.files.write("cli-bad", more="shoe: 1\n")
    home.files.write("cli-worse", more="model: chat\n")
    refused = home.refused("sync", "--folder", str(home.files.folder)).splitlines()
    assert refused == [
        f"{home.files.folder}/cli-bad.yaml:10: shoe: Extra inputs are not permitted",
        f"{home.files.folder}/cli-worse.yaml:10: the key 'model' stands twice",
    ]
    assert "nowhere" in home.refused("sync", "--folder", str(tmp_path / "nowhere"))
    assert "there is no prompt here" in home.out("list")
    registry = PromptRegistry(str(home.given["mlflow"]["tracking_uri"]))
    assert registry.lacks("cli-good")
    assert home.run("rollback", "cli-good").exit_code == 2  # without a reason


def test_with_mlflow_away_versions_are_shown_and_rolled_back(twice: Home) -> None:
    twice.let_through("cli-twice", "2", "1")
    twice.out("label", "cli-twice", "2", "production", "--reason", "better")
    url = f"http://127.0.0.1:{free_port()}"
    twice.given["mlflow"]["tracking_uri"] = url
    twice.gateway.write(twice.given)
    assert f"MLflow at {url} is away" in twice.refused("sync", "--folder", str(twice.files.folder))
    assert "Welcome" in twice.out("show", "cli-twice")
    assert "is version 1, was 2" in twice.out("rollback", "cli-twice", "--reason", "worse")
    del twice.given["mlflow"]
    twice.gateway.write(twice.given)
    said = twice.refused("sync", "--folder", str(twice.files.folder))
    assert said == "mlflow.tracking_uri: is not set; this needs MLflow\n"


def test_the_library_of_the_project_is_synced_as_it_stands(home: Home) -> None:
    done = home.process("sync")
    assert done.returncode == 0, done.stderr
    names = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert {"assistant", "ticket-classifier", "extractor", "judge"} <= names
    began = time.monotonic()
    assert home.run("sync").exit_code == 0
    assert time.monotonic() - began < UNCHANGED_SECONDS
