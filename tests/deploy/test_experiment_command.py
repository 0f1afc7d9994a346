"""`llmops experiment` on a prompt, as a person calls it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from gateway.database import Database, open_database
from tests.gateway_process import GatewayProcess, configuration
from tests.pipelines.prompt_trial import first, prompt, put, state_of

ID = re.compile(r"experiment ([0-9a-f-]{36})")


@dataclass(frozen=True, slots=True)
class Home:
    """An installation, not running, with three versions of the prompt `greeter`."""

    process: GatewayProcess
    database: Database

    def said(self, line: str, code: int = 0) -> str:
        """What a command says: on standard output, or as a refusal of one line."""
        done = CliRunner().invoke(app, shlex.split(line), env=self.process.environ)
        assert done.exit_code == code, done.output
        if code:
            assert done.stdout == "" and done.stderr.count("\n") == 1
            return done.stderr
        assert done.stderr == ""
        return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    process = GatewayProcess(tmp_path / "home", configuration("http://127.0.0.1:9/v1"))
    database = open_database(process.settings.database_url)
    for version in ("1", "2"):
        put(database, version, prompt("greeter", f"Greet {{{{ who }}}}, {version}."))
    put(database, "3", prompt("greeter", "Hello.", variables=[]))
    first(database, "greeter")
    yield Home(process, database)
    database.close()


def test_from_start_to_stop(home: Home) -> None:
    assert "there was no experiment here" in home.said("experiment list")
    assert "there was no experiment on prompt:greeter" in home.said(
        "experiment status prompt:greeter"
    )
    started = home.said("experiment start prompt:greeter 2 --weight 0.25")
    assert "\nchampion version 1 75%, challenger version 2 25%\n" in started
    assert "guardrails: errors, refusals, latency; after a win 10% keep" in started
    found = ID.search(started)
    assert found is not None
    identifier = found.group(1)
    sharing = "greeter: of production's users 75% get version 1 and 25% get version 2"
    assert sharing in home.said("prompts list") and sharing in home.said("prompts show greeter")
    listed = home.said("experiment list")
    assert identifier in listed and "prompt:greeter" in listed and "running" in listed
    status = home.said("experiment status prompt:greeter")
    assert "not decided yet" in status and re.search(r"errors +- +- +- +- +0 +not known", status)
    shown = home.said(f"experiment show {identifier}")
    assert "guardrail errors margin 0.02" in shown and "weight 0.25" in shown
    assert "reason: say why" in home.said(f"experiment stop {identifier} --reason ' '", 1)
    assert "is stopped" in home.said(f"experiment stop {identifier} --reason 'a mistake'")
    assert "a mistake" in home.said(f"experiment show {identifier}")
    assert "of production's users" not in home.said("prompts list")
    assert state_of(home.database, "greeter").split is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("start prompt:nobody 1", "there is no prompt 'nobody'"),
        ("start prompt:greeter 9", "no version or label '9' (versions: 1, 2, 3)"),
        ("start prompt:greeter 1", "is what production names already"),
        ("start prompt:greeter 3", "who: callers give it, the candidate does not know it"),
        ("start greeter 2", "a prompt's are on prompt:greeter"),
        ("start prompt:greeter 2 --spec extractor", "--spec: a prompt has none; see --plan"),
        ("start prompt:greeter 2 --plan nowhere.yaml", "nowhere.yaml: not a plan that can be read"),
        ("start prompt:greeter 2 --weight 1", "--weight: weight: Input should be less than 1"),
        ("status prompt:nobody", "there is no prompt 'nobody'"),
        ("show nothing", "there is no experiment 'nothing'"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(home: Home, line: str, message: str) -> None:
    before = state_of(home.database, "greeter")
    assert message in home.said(f"experiment {line}", 1)
    assert state_of(home.database, "greeter") == before


def test_a_rollback_says_what_it_stopped(home: Home) -> None:
    found = ID.search(home.said("experiment start prompt:greeter 2"))
    assert found is not None
    said = home.said("prompts rollback greeter --reason 'it is rude'")
    assert f"experiment {found.group(1)} was stopped" in said
    assert "production of greeter is version 1\n" in said
