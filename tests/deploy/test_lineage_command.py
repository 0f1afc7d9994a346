"""`llmops lineage ID` and `llmops lineage check` as a person runs them, with no stack running."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from tests.gateway_process import ROOT, free_port
from tests.pipelines.lifecycle_rows import Chain, write_chain
from tests.pipelines.lineage_damage import configured, copied, edit, erase, keep_files, rows
from tests.pipelines.mlflow_server import MLflowServer

NAME = "told"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Home:
    """A chain's home and the command on it."""

    chain: Chain
    environ: dict[str, str]

    def process(self, *arguments: str) -> Done:
        """The command as a process of its own; the others run in this one, which is quicker."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", "lineage", *arguments],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *arguments: str) -> Done:
        done = CliRunner().invoke(app, ["lineage", *arguments], env=self.environ)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    def out(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return orjson.loads(self.out(*arguments, "--json"))


@pytest.fixture(scope="module")
def written(
    mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    home = tmp_path_factory.mktemp("lineage")
    chain = write_chain(home, name=NAME, tracking_uri=mlflow_server.url, ship=True)
    keep_files(chain)
    yield chain
    chain.database.close()


@pytest.fixture(scope="module")
def whole(written: Chain, mlflow_server: MLflowServer) -> Home:
    return Home(written, configured(written, mlflow_server.url))


@pytest.fixture
def home(written: Chain, mlflow_server: MLflowServer, tmp_path: Path) -> Iterator[Home]:
    """One that a test may damage."""
    chain = copied(written, tmp_path / "home")
    yield Home(chain, configured(chain, mlflow_server.url))
    chain.database.close()


@pytest.fixture
def empty(tmp_path: Path, mlflow_server: MLflowServer) -> Home:
    """A home in which nothing was ever done; `chain` is another's."""
    (tmp_path / "gateway.yaml").write_text("upstreams: {}\nmodels: {}\n")
    own = {"LLMOPS_HOME": str(tmp_path), "LLMOPS_CONFIG": str(tmp_path / "gateway.yaml")}
    return Home(None, {**os.environ, **own})  # type: ignore[arg-type]


def test_a_promotion_as_a_tree(whole: Home) -> None:
    chain = whole.chain
    done = whole.process(chain.promotion_id)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"promotion {chain.promotion_id}  kind=promote  alias={NAME}  name=")
    assert lines[0] == "└── made with"
    text = "\n".join(lines)
    for kind, identifier in chain.ids.items():
        if kind != "promotion":
            assert f"{kind} {identifier}" in text
    assert "made from 12 feedback, first 5 shown" in text
    assert "made from 12 requests, first 5 shown" in text
    assert text.count(f"feedback {chain.feedback[5]}") == 0
    assert "(see above)" in text  # what two ways lead to is unfolded once
    assert "led to" not in text


def test_feedback_as_a_tree(whole: Home) -> None:
    chain = whole.chain
    text = whole.out(chain.feedback[0])
    before, _, after = text.partition("led to")
    assert f"given on request {chain.requests[0]}" in before
    assert f"made from dataset {chain.dataset_id}" in after
    assert f"moved to promotion {chain.promotion_id}" in after


def test_disapproval_is_shown(whole: Home) -> None:
    query = "SELECT feedback_id FROM feedback WHERE value = 'false'"
    shown = whole.out(rows(whole.chain, query)[0]["feedback_id"]).splitlines()
    assert "metric_name=helpful  value=False" in shown[0]
    assert "blocked" not in "".join(shown)  # a key that is not


@pytest.mark.parametrize("kind", ["request", "adapter", "model_version", "experiment"])
def test_an_id_as_json(whole: Home, kind: str) -> None:
    identifier = whole.chain.ids[kind]
    found = whole.json(identifier)
    assert found["starts"] == [f"{kind}:{identifier}"]
    names = {node["name"] for node in found["nodes"]}
    assert f"promotion:{whole.chain.promotion_id}" in names
    assert {edge[end] for edge in found["edges"] for end in ("effect", "cause")} <= names
    assert found["truncated"] is False


def test_an_alias_and_the_word_show(whole: Home) -> None:
    assert whole.out(NAME).startswith(f"model {NAME}  champion={NAME}/1")
    assert whole.out("show", NAME) == whole.out(NAME)


def test_an_id_that_is_unknown(whole: Home) -> None:
    done = whole.run("0" * 32)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: nothing is known of '{'0' * 32}'")
    assert done.stderr.count("\n") == 1


def test_help_names_both(whole: Home) -> None:
    shown = whole.run("--help")
    assert shown.returncode == 0
    assert "check" in shown.stdout and "show" in shown.stdout
    assert whole.run().returncode == 2


def test_a_whole_chain(whole: Home) -> None:
    *lines, summary = whole.out("check").splitlines()
    assert summary.startswith(f"{NAME}/1: ") and summary.endswith(" links, all there")
    table = [line.split() for line in lines[1:]]
    assert len(table) == int(summary.split()[1])
    assert all("ok" in cells for cells in table)
    for arguments in ((NAME,), (NAME, "--champion")):
        assert f"{NAME}/1: " in whole.out("check", *arguments)


def test_a_whole_chain_as_json(whole: Home) -> None:
    report = whole.json("check", NAME)
    assert (report["whole"], report["versions"]) == (True, [f"{NAME}/1"])
    assert {link["state"] for link in report["links"]} == {"ok"}
    (files,) = [link for link in report["links"] if link["to"] == "files"]
    assert Path(files["found"]) == whole.chain.home / "lifecycle" / NAME / "pins" / (
        whole.chain.dataset_id
    )
    without = whole.json("check", NAME, "--no-data")
    assert "files" not in {link["to"] for link in without["links"]}


def test_a_broken_chain_ends_with_1_and_says_what_to_do(home: Home) -> None:
    chain = home.chain
    edit(chain, "DELETE FROM verdict WHERE verdict_id = ?", chain.verdict_id)
    edit(chain, "DELETE FROM feedback WHERE feedback_id = ?", chain.feedback[0])
    done = home.process("check")
    assert (done.returncode, done.stderr) == (1, "")
    *lines, summary = done.stdout.splitlines()
    broken = [line for line in lines if line.startswith("broken: ")]
    assert summary.startswith(f"{NAME}/1: {len(broken)} of ")
    assert (
        f"broken: model_version {NAME}/1 → verdict {chain.verdict_id}: not in the state database; "
        "restore the state database from a copy, or train again: a version without it cannot be "
        "explained"
    ) in broken
    assert (
        f"broken: dataset {chain.dataset_id} → feedback {chain.feedback[0]}: not in the state "
        "database, and no erasure order covers it; restore the state database from a copy"
    ) in broken
    as_json = home.run("check", "--json")
    assert as_json.returncode == 1
    report = orjson.loads(as_json.stdout)
    assert report["whole"] is False
    assert len([link for link in report["links"] if link["state"] == "broken"]) == len(broken)


def test_a_forgotten_user_is_no_fault(home: Home, mlflow_server: MLflowServer) -> None:
    erase(home.chain, mlflow_server.url, "first-0", "--delete-rows")
    summary = home.out("check").splitlines()[-1]
    assert summary.endswith("all there, 4 erased by order")


def test_with_mlflow_away(home: Home) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    configured(home.chain, address)
    assert home.chain.promotion_id in home.out(home.chain.promotion_id)
    done = home.run("check")
    assert done.returncode == 1
    (broken,) = [line for line in done.stdout.splitlines() if line.startswith("broken: ")]
    assert broken.startswith("broken: registry → MLflow: cannot be checked: MLflow at ")
    assert address in broken
    assert broken.endswith("bring MLflow back, then check again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "nobody"), "no model 'nobody' was registered by this installation (there are: "),
        (("check", "nobody", "--champion"), "no model 'nobody' was registered"),
        (("check", "--champion"), "say of which model: llmops lineage check NAME --champion"),
    ],
)
def test_mistakes_are_one_line(whole: Home, arguments: tuple[str, ...], message: str) -> None:
    done = whole.run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_installation_without_mlflow(empty: Home) -> None:
    done = empty.run("check")
    assert done.returncode == 1
    assert done.stderr == "error: mlflow.tracking_uri: is not set; this needs MLflow\n"


def test_an_installation_without_a_model(empty: Home, mlflow_server: MLflowServer) -> None:
    path = Path(empty.environ["LLMOPS_CONFIG"])
    path.write_text(f"{path.read_text()}mlflow: {{tracking_uri: '{mlflow_server.url}'}}\n")
    assert empty.out("check").splitlines()[-1] == "no model version: 0 links, all there"
    done = empty.run("0" * 32)
    assert done.returncode == 1
    assert "nothing is known of" in done.stderr
