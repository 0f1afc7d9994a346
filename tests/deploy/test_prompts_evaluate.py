"""`llmops prompts evaluate` on real branches, through a real gateway, with scripted answers."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from deploy.cli import app
from evals.verdicts import VerdictRow
from gateway.database import open_database
from pipelines.prompt_comment import MARKER
from tests.evals.scripted_judge import ScriptedJudge, scripted_judge
from tests.gateway_process import GatewayProcess, configuration, free_port
from tests.pipelines.backstage import Backstage
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.prompt_branch import CASES, PromptBranch

IN_FORCE_SECONDS = 2.0
TROUBLE = (503, {"error": {"message": "overloaded", "type": "server_error"}})
UNFIT = (400, {"error": {"message": "top_q: unknown", "type": "invalid_request_error"}})


def answered(body: dict[str, Any]) -> Any:
    """As the first word of the message wants it: the word, the word wrongly, or no answer."""
    how, word = body["messages"][-1]["content"].split(" ", 1)
    number = int(word.removeprefix("word")) if word.startswith("word") else 0
    says = {"Say": word, "Shout": word.upper(), "Half": word if number % 2 else "no",
            "Fail": word if number else TROUBLE, "Refuse": UNFIT}  # fmt: skip
    return says[how]


@pytest.fixture(scope="module")
def engine(backstage: Backstage) -> Iterator[ScriptedJudge]:
    with scripted_judge(backstage, answered) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, engine: ScriptedJudge, mlflow_server: MLflowServer
) -> Iterator[GatewayProcess]:
    given = configuration(engine.url, mlflow={"tracking_uri": mlflow_server.url})
    process = GatewayProcess(tmp_path_factory.mktemp("evaluate") / "home", given).start()
    (process.home / "secrets").mkdir(exist_ok=True)
    key = process.home / "secrets" / "dev.key"
    key.write_text(process.key)
    key.chmod(0o600)
    yield process
    process.stop()


@pytest.fixture
def files(tmp_path: Path) -> PromptBranch:
    return PromptBranch(tmp_path / "repository")


class Command:
    """`llmops prompts` in one repository."""

    def __init__(self, gateway: GatewayProcess, files: PromptBranch, out: Path):
        self.gateway, self.files, self.out = gateway, files, out

    def run(self, *arguments: str, **environ: str) -> Any:
        done = CliRunner().invoke(
            app, ["prompts", *arguments], env={**self.gateway.environ, **environ}
        )
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def evaluate(self, *arguments: str, **environ: str) -> Any:
        before = () if "--production" in arguments else ("--base", "main")
        place = (*self.files.options(), "--out", str(self.out))
        return self.run("evaluate", *before, *place, *arguments, **environ)

    def refused(self, *arguments: str, **environ: str) -> str:
        """What is said where nothing could be evaluated; the report says it too."""
        done = self.evaluate(*arguments, **environ)
        assert (done.exit_code, done.stdout) == (1, ""), done.stdout
        said = str(done.stderr).partition("error: ")[2].strip()
        comment = self.comment()
        assert comment.startswith(MARKER) and "could not be evaluated" in comment
        assert all(line in comment for line in said.splitlines())
        assert sorted(path.name for path in self.out.iterdir()) == ["report.md"]
        return said

    def report(self) -> Any:
        return orjson.loads((self.out / "report.json").read_bytes())

    def comment(self) -> str:
        return (self.out / "report.md").read_text()

    def verdicts(self) -> list[VerdictRow]:
        database = open_database(self.gateway.settings.database_url)
        with database.session() as session:
            rows = list(session.scalars(select(VerdictRow).order_by(VerdictRow.verdict_id)))
        database.close()
        return rows


@pytest.fixture
def command(gateway: GatewayProcess, files: PromptBranch, tmp_path: Path) -> Command:
    return Command(gateway, files, tmp_path / "out")


def test_a_branch_that_worsens_a_prompt_fails_and_shows_the_cases(
    command: Command, files: PromptBranch, engine: ScriptedJudge
) -> None:
    files.prompt("worsened")
    files.prompt("untouched")
    base = files.branch()
    files.prompt("worsened", "Shout")
    head = files.commit()
    engine.bodies.clear()
    done = command.evaluate()
    assert done.exit_code == 100, done.stderr
    assert "worsened: worse" in done.stdout and "untouched" not in done.stdout
    assert f"exact_match: {CASES} cases got worse, 0 better" in done.stdout
    asked = [body["messages"][0]["content"] for body in engine.bodies]
    assert len(asked) == 2 * CASES == len(set(asked))
    assert {body["seed"] for body in engine.bodies} == {0}

    (found,) = command.report()["prompts"]
    assert (found["outcome"], found["failed"]) == ("worse", True)
    assert found["verdict"]["decision"] == "reject"
    assert found["verdict"]["evidence"]["base"] == base
    assert found["verdict"]["evidence"]["head"] == head
    metrics = {one["name"]: one for one in found["verdict"]["metrics"]}
    assert metrics["exact_match"]["delta"] == -1.0
    assert {"latency", "cost", "output_tokens"} <= metrics.keys()
    comment = command.comment()
    assert "<code>word0</code> | <code>word0</code> | <code>WORD0</code>" in comment
    page = (command.out / "report.html").read_text()
    assert page.count("WORD") == CASES and "<script" not in page and "http" not in page
    assert command.verdicts()[-1].decision == "reject"


def test_one_that_betters_it_passes_and_production_moves_at_the_merge(
    command: Command, files: PromptBranch, gateway: GatewayProcess
) -> None:
    files.prompt("bettered", "Half")
    files.branch()
    folder = ("--folder", str(files.folder))
    assert command.run("sync", *folder, "--first-label").exit_code == 0
    files.prompt("bettered", "Say")
    files.commit()
    done = command.evaluate()
    assert done.exit_code == 0, done.stdout
    assert "bettered: better" in done.stdout
    assert command.report()["prompts"][0]["verdict"]["decision"] == "promote"

    done = command.run("sync", *folder, "--accept")
    assert done.exit_code == 0, done.stderr
    assert "production of bettered is version 2, was 1" in done.stdout
    assert "production of" not in command.run("sync", *folder, "--accept").stdout
    began = time.monotonic()
    assert command.run("rollback", "bettered", "--reason", "drill").exit_code == 0
    assert "version 1 (production)" in command.run("show", "bettered").stdout
    assert time.monotonic() - began < IN_FORCE_SECONDS


def test_against_production_what_is_no_better_stays_a_version(
    command: Command, files: PromptBranch, engine: ScriptedJudge
) -> None:
    files.prompt("served")
    files.branch()
    folder = ("--folder", str(files.folder))
    assert command.run("sync", *folder, "--first-label").exit_code == 0
    files.prompt("served", "Shout")
    files.prompt("fresh")
    files.commit()
    done = command.evaluate("--production")
    assert done.exit_code == 100
    assert "fresh: new" in done.stdout and "served: worse" in done.stdout
    engine.bodies.clear()
    again = command.evaluate("--production")
    assert "served: judged already, the same versions on the same cases: reject" in again.stderr
    assert not engine.bodies  # who asks often enough gets any answer in the end
    done = command.run("sync", *folder, "--accept")
    assert done.exit_code == 0
    assert "served version 2 does not become production: the verdict on it is reject" in done.stderr
    assert "served version 1 (production)" in command.run("show", "served").stdout
    files.prompt("served", "Say")
    files.commit()
    done = command.evaluate("--production")
    assert done.exit_code == 0 and "served" not in done.stdout


def test_nothing_changed_asks_nothing(
    command: Command, files: PromptBranch, engine: ScriptedJudge
) -> None:
    files.prompt("same")
    files.branch()
    described = (files.folder / "same.yaml").read_text() + "description: another\n"
    (files.folder / "same.yaml").write_text(described)
    files.commit()
    engine.bodies.clear()
    done = command.evaluate("--url", f"http://127.0.0.1:{free_port()}/v1")
    assert done.exit_code == 0
    assert done.stdout.startswith("Prompts: nothing changed")
    assert not engine.bodies


def test_the_head_is_a_commit_and_the_work_tree_only_on_demand(
    command: Command, files: PromptBranch
) -> None:
    files.prompt("tried")
    files.branch()
    files.prompt("tried", "Shout")
    done = command.evaluate()
    assert done.exit_code == 0 and "nothing changed" in done.stdout
    assert "not committed, so not evaluated: prompts/tried.yaml" in done.stderr
    done = command.evaluate("--work-tree")
    assert done.exit_code == 100 and "tried: worse" in done.stdout


def test_main_that_moved_on_is_not_the_branch_s_fault(
    command: Command, files: PromptBranch
) -> None:
    files.prompt("mine", "Half")
    files.prompt("theirs", "Half")
    files.branch()
    files.prompt("mine", "Say")
    files.commit()
    files.git("checkout", "-q", "main")
    files.prompt("theirs", "Say")
    files.commit()
    files.git("checkout", "-q", "change")
    done = command.evaluate()
    assert done.exit_code == 0
    assert "mine: better" in done.stdout and "theirs" not in done.stdout
    assert "main has moved on since the branch was made" in done.stderr


def test_a_gate_cannot_be_loosened_by_the_branch_that_it_judges(
    command: Command, files: PromptBranch
) -> None:
    files.prompt("loosened")
    files.branch()
    files.prompt("loosened", "Shout", gate="[]")
    files.commit()
    done = command.evaluate()
    assert done.exit_code == 100
    assert "the gate was changed: not in it any more: exact_match" in done.stdout
    assert "counts still" in command.comment()


def test_changed_cases_are_asked_of_both_and_said(
    command: Command, files: PromptBranch, engine: ScriptedJudge
) -> None:
    files.prompt("recast")
    files.branch()
    words = [(f"word{number}", f"word{number}") for number in range(1, CASES)]
    files.cases("recast", [*words, ("other", "other")])
    files.commit()
    engine.bodies.clear()
    done = command.evaluate()
    assert done.exit_code == 0
    assert "recast: the prompt itself was not changed" in done.stdout
    assert "golden cases were changed" in done.stdout
    assert len(engine.bodies) == CASES
    files.prompt("recast", "Shout")
    files.commit()
    assert command.evaluate().exit_code == 100
    assert "both versions are asked the new ones" in command.comment()


def test_too_few_cases_do_not_pass(command: Command, files: PromptBranch) -> None:
    files.prompt("thinned")
    files.branch()
    files.prompt("thinned", "Shout")
    files.cases("thinned", [(f"word{n}", f"WORD{n}") for n in range(9)])
    files.commit()
    done = command.evaluate()
    assert done.exit_code == 100
    assert "thinned: could not be judged" in done.stdout
    assert "9 pairs of values, and its condition wants 50" in done.stdout


def test_a_version_that_cannot_be_rendered_or_is_refused_fails(
    command: Command, files: PromptBranch
) -> None:
    files.prompt("unrendered")
    files.prompt("refused")
    files.branch()
    path = files.prompt("unrendered")
    path.write_text(path.read_text().replace("{{ word }}", "{{ word.text }}"))
    files.prompt("refused", "Refuse")
    files.commit()
    done = command.evaluate()
    assert done.exit_code == 100
    assert f"it cannot be rendered with {CASES} of {CASES} cases (c0: " in done.stdout
    assert f"it is refused with {CASES} of {CASES} cases" in done.stdout
    assert {one.decision for one in command.verdicts()[-2:]} == {"reject"}


def test_a_case_that_fits_neither_version_is_named_with_its_line(
    command: Command, files: PromptBranch
) -> None:
    files.prompt("misfit")
    files.branch()
    files.prompt("misfit", "Shout")
    with (files.golden / "misfit.jsonl").open("a") as file:
        file.write('{"case_id": "odd", "variables": {"word": 7}, "expected": "word7"}\n')
    files.commit()
    done = command.evaluate()
    where = f"HEAD:golden/misfit.jsonl:{CASES + 1}: "
    assert f"1 of {CASES + 1} cases fit neither version ({where}" in done.stdout


def test_new_and_removed_prompts_are_reported(command: Command, files: PromptBranch) -> None:
    files.prompt("gone")
    files.branch()
    (files.folder / "gone.yaml").unlink()
    files.prompt("come")
    files.commit()
    done = command.evaluate()
    assert done.exit_code == 0
    assert "gone: removed" in done.stdout and "come: new" in done.stdout
    assert "exact&#95;match | - | 1.00" in command.comment()


BROKEN = [
    ("shoe: 1\n", "HEAD:prompts/good.yaml:13: shoe: Extra inputs are not permitted"),
    ("{{ what }}", "HEAD:prompts/good.yaml:4: messages.0.content: what: not among the variables"),
    (
        "{% for a in word %}" * 60 + "{% endfor %}" * 60,
        "HEAD:prompts/good.yaml:4: messages.0.content: nests deeper than",
    ),
]


@pytest.mark.parametrize(("what", "said"), BROKEN, ids=["key", "variable", "bomb"])
def test_a_broken_prompt_file_is_refused_before_anything_is_asked(
    command: Command, files: PromptBranch, engine: ScriptedJudge, what: str, said: str
) -> None:
    path = files.prompt("good")
    files.branch()
    text = path.read_text()
    path.write_text(text + what if ":" in what else text.replace("{{ word }}", what))
    files.commit()
    engine.bodies.clear()
    assert said in command.refused()
    assert not engine.bodies
    # And a branch that repairs it can be compared.
    files.git("branch", "-f", "main", "change")
    path.write_text(text)
    files.commit()
    done = command.evaluate()
    assert done.exit_code == 0
    assert "good: new" in done.stdout and "the base's file cannot be read" in done.stdout


def test_other_bad_input_is_said_with_its_place(command: Command, files: PromptBranch) -> None:
    files.prompt("one")
    files.branch()
    copy = files.folder / "two.yaml"
    shutil.copy(files.folder / "one.yaml", copy)
    files.commit()
    assert "HEAD:prompts/two.yaml:1: name: one is in HEAD:prompts/one.yaml" in command.refused()
    copy.unlink()
    with (files.golden / "one.jsonl").open("a") as file:
        file.write("{broken\n")
    files.commit()
    assert f"HEAD:golden/one.jsonl:{CASES + 1}: not JSON" in command.refused()
    files.cases("one", [("word", "word")])
    path = files.folder / "one.yaml"
    text = path.read_text()
    path.write_text(text.replace("metric: exact_match", "metric: exactmatch"))
    files.commit()
    assert "HEAD:prompts/one.yaml:" in command.refused()
    assert "no metric 'exactmatch' (there are: " in command.refused()
    path.write_text(text)
    (files.golden / "one.jsonl").unlink()
    files.commit()
    assert "HEAD:golden/one.jsonl: there is no such file" in command.refused()
    assert "there is no revision 'nowhere'" in command.refused("--head", "nowhere")
    assert "there is no revision '--all'" in command.refused("--head=--all")


def test_a_shallow_clone_says_how_to_deepen(
    command: Command, files: PromptBranch, tmp_path: Path
) -> None:
    files.prompt("shallow")
    files.branch()
    files.prompt("shallow", "Shout")
    files.commit()
    clone = tmp_path / "clone"
    source = f"file://{files.root}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, str(clone)], check=True)
    options = ("--folder", str(clone / "prompts"), "--cases", str(clone / "golden"))
    said = command.refused(*options)
    assert "there is no revision 'main' here" in said
    assert "git fetch" in said and "fetch-depth: 0" in said
    fetch = ["git", "-C", str(clone), "fetch", "-q", "--depth", "1", "origin", "main:main"]
    subprocess.run(fetch, check=True)
    said = command.refused(*options)
    assert "no commit in common" in said and "fetch-depth: 0" in said


def test_trouble_of_the_stack_is_no_verdict(
    command: Command, files: PromptBranch, engine: ScriptedJudge
) -> None:
    files.prompt("troubled")
    files.branch()
    files.prompt("troubled", "Fail")
    files.commit()
    count = len(command.verdicts())
    away = f"http://127.0.0.1:{free_port()}/v1"
    assert f"no gateway answers at {away}" in command.refused("--url", away)
    said = command.refused("--key-env", "WRONG", WRONG="sk-wrong")
    assert "does not take the key (HTTP 401)" in said
    assert "UNSET: the environment has no key" in command.refused("--key-env", "UNSET")
    said = command.refused()
    assert f"prompt troubled, head: 1 of {CASES} requests got no answer" in said
    assert "nothing was judged" in said
    assert len(command.verdicts()) == count
    # What was answered is not asked again.
    files.prompt("troubled", "Shout")
    files.commit()
    engine.bodies.clear()
    assert command.evaluate().exit_code == 100
    asked = [body["messages"][0]["content"] for body in engine.bodies]
    assert sum(one.startswith("Shout") for one in asked) == CASES
    assert sum(one.startswith("Say") for one in asked) < CASES


def test_with_mlflow_away_the_evaluation_ends_and_says_so(
    command: Command, files: PromptBranch, gateway: GatewayProcess
) -> None:
    files.prompt("alone")
    files.branch()
    files.prompt("alone", "Shout")
    files.commit()
    url = f"http://127.0.0.1:{free_port()}"
    gateway.write({**gateway.given, "mlflow": {"tracking_uri": url}})
    try:
        done = command.evaluate()
    finally:
        gateway.write(gateway.given)
    assert done.exit_code == 100
    assert "MLflow has not all of this" in done.stderr
    assert "MLflow has not all of this" in command.comment()
    assert command.verdicts()[-1].decision == "reject"


def test_one_of_base_and_production_is_wanted(command: Command) -> None:
    assert command.run("evaluate").exit_code == 1
    assert command.evaluate("--production", "--base", "main").exit_code == 1
    assert not os.path.exists(command.out)
