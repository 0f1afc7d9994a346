"""`llmops approve` as a person calls it, and the first version of a model that answers nothing."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from gateway.database import Conflict, Database, open_database
from pipelines import lifecycle
from pipelines.approval import Request, ask
from pipelines.champion import Move, champion_of, hold, move_champion
from pipelines.first_traffic import give_traffic
from pipelines.installation import open_installation
from pipelines.llm import LLM
from pipelines.spec import load_spec
from tests.gateway_process import GatewayProcess, configuration
from tests.pipelines.backstage import Backstage
from tests.pipelines.lifecycle import ALIAS, adapter_name, seed_version
from tests.pipelines.scripted_engine import ScriptedEngine

SPEC = """
name: extractor
kind: llm
alias: extractor
gate: []
experiment: {metric: helpful}
approval: manual
"""


@dataclass(frozen=True, slots=True)
class Home:
    """An installation in front of an engine, with a version of `extractor`."""

    process: GatewayProcess
    database: Database
    engine: ScriptedEngine

    def said(self, line: str, code: int = 0) -> str:
        """What a command says: on standard output, or as a refusal of one line."""
        done = CliRunner().invoke(app, shlex.split(line), env=self.process.environ)
        assert done.exit_code == code, done.output
        return done.stderr if code else done.stdout

    def asked(self) -> str:
        """Id of a fresh request."""
        request = Request(ALIAS, ALIAS, "1", "controller", "the candidate is better")
        with self.database.transaction() as session:
            hold(session)
            return ask(session, request).approval_id

    def champion(self) -> str | None:
        with self.database.session() as session:
            return champion_of(session, ALIAS).version


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Backstage() as backstage:
        engine = ScriptedEngine()
        backstage.run(engine.__aenter__())
        given = configuration(
            engine.url,
            upstreams={"engine": {"url": engine.url, "engine": "vllm"}},
            models={ALIAS: {"upstream": "engine", "model": "base-model"}},
        )
        process = GatewayProcess(tmp_path / "home", given)
        database = open_database(process.settings.database_url)
        seed_version(database, "1")
        yield Home(process, database, engine)
        database.close()
        backstage.run(engine.__aexit__(None, None, None))


def test_from_the_request_to_the_grant(home: Home) -> None:
    assert home.said("approve list") == "nothing waits for leave here\n"
    identifier = home.asked()
    listed = home.said("approve list")
    assert identifier in listed and "extractor/1" in listed and "the candidate is better" in listed
    shown = home.said(f"approve show {identifier}")
    assert "by controller: the candidate is better" in shown and "ended" not in shown
    assert "reason: say why" in home.said(f"approve grant {identifier} --reason ' '", 1)
    assert "there is no approval 'x'" in home.said("approve grant x --reason why", 1)
    said = home.said(f"approve grant {identifier} --reason 'seen in staging'")
    assert f"extractor is answered by {adapter_name('1')}\npromote " in said
    assert home.champion() == "1" and list(home.engine.adapters) == [adapter_name("1")]
    again = home.said(f"approve grant {identifier} --reason again")
    assert "nothing changed: extractor is answered by" in again
    shown = home.said(f"approve show {identifier}")
    assert ": granted\n" in shown and ": seen in staging\npromotion  " in shown
    assert home.said("approve list") == "nothing waits for leave here\n"
    assert "granted" in home.said("approve list --all")
    assert "granted by" in home.said(f"lineage {identifier}")


def test_a_refusal(home: Home) -> None:
    identifier = home.asked()
    said = home.said(f"approve refuse {identifier} --reason 'not yet'")
    assert said == f"approval {identifier} on extractor is refused\n"
    late = home.said(f"approve grant {identifier} --reason 'after all'", 1)
    assert "is refused already, by cli:" in late and home.champion() is None


def test_what_was_overtaken_says_so(home: Home) -> None:
    identifier = home.asked()
    home.said("promote extractor 1 --reason urgent")
    assert "can no longer be granted: the champion of extractor was moved since" in home.said(
        f"approve show {identifier}"
    )
    assert "is void: the champion" in home.said(f"approve grant {identifier} --reason ok", 1)


def test_the_first_version_of_what_answers_nothing_yet_asks(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tabular model's: where the gate let it through, a person is asked instead."""
    monkeypatch.setitem(lifecycle.KINDS, "llm", replace(LLM, plain=False))
    path = home.process.home / "spec.yaml"
    path.write_text(SPEC)
    with open_installation(home.process.settings) as installation:
        for _ in range(2):
            given = give_traffic(installation, load_spec(path), "1")
    assert given.approval_id is not None and given.promotion_id is None
    assert "approval" in given.told and home.champion() is None
    shown = home.said(f"approve show {given.approval_id}")
    assert "by pipeline: the first version" in shown and "promote, so it was measured" in shown
    home.said(f"approve grant {given.approval_id} --reason 'fine'")
    assert home.champion() == "1"


def test_the_same_version_of_another_model_is_not_it(home: Home) -> None:
    with home.database.transaction() as session:
        hold(session)
        move_champion(session, Move("promote", ALIAS, "another", "1", "anna", "it is better"))
    path = home.process.home / "spec.yaml"
    path.write_text(SPEC)
    with (
        open_installation(home.process.settings) as installation,
        pytest.raises(Conflict, match="extractor is answered by another version 1"),
    ):
        give_traffic(installation, load_spec(path), "1")
