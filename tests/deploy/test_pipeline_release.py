"""A release of a pipeline: uploaded once, started once, and trouble is told."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pipeline_release import main
from pipelines.code_version import compiled, pipeline_version
from pipelines.spec import load_spec
from tests.deploy.kubeflow_server import KubeflowServer

SPEC = "extractor"


@pytest.fixture
def kubeflow() -> Iterator[KubeflowServer]:
    with KubeflowServer() as server:
        yield server


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", "secret-token")


def test_it_is_uploaded_and_started_once(kubeflow, capsys):
    assert main([SPEC, "--host", kubeflow.url]) == 0
    first = capsys.readouterr().out
    assert main([SPEC, "--host", kubeflow.url]) == 0
    again = capsys.readouterr().out
    version, ir = pipeline_version("llm"), compiled("llm")
    assert f"pipeline version {version}" in first
    assert first.count(": uploaded") == 1 and first.count(": started") == 1
    assert again.count(": was there") == 2
    (pipeline,), (made,), (run,) = kubeflow.pipelines, kubeflow.versions, kubeflow.runs
    assert pipeline["display_name"] == "train-llm"
    assert ir.read_bytes() in kubeflow.uploads[version]
    assert run["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": made["pipeline_version_id"],
    }
    parameters = run["runtime_config"]["parameters"]
    assert parameters == {"spec": load_spec(Path(SPEC)).text()}
    assert set(kubeflow.tokens) == {"Bearer secret-token"}


def test_an_edited_spec_is_a_run_of_its_own(kubeflow, tmp_path):
    text = load_spec(Path(SPEC)).text()
    names = []
    for index, given in enumerate((text, text.replace("rank: 8", "rank: 4"))):
        path = tmp_path / f"{index}.yaml"
        path.write_text(given)
        assert main([str(path), "--host", kubeflow.url]) == 0
        names.append(kubeflow.runs[-1]["display_name"])
    assert len(kubeflow.runs) == 2 and len(set(names)) == 2
    assert len(kubeflow.versions) == 1


def test_a_run_that_failed_or_was_cancelled_is_not_in_the_way(kubeflow, capsys):
    for state in ("FAILED", "CANCELED", "RUNNING"):
        assert main([SPEC, "--host", kubeflow.url]) == 0
        kubeflow.runs[-1]["state"] = state
    assert main([SPEC, "--host", kubeflow.url]) == 0
    names = [run["display_name"] for run in kubeflow.runs]
    assert names == [names[0], f"{names[0]}, attempt 2", f"{names[0]}, attempt 3"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"run {kubeflow.runs[-1]['run_id']}: was there"


def test_it_can_be_uploaded_without_a_run(kubeflow):
    assert main([SPEC, "--host", kubeflow.url, "--no-run"]) == 0
    assert len(kubeflow.versions) == 1 and not kubeflow.runs
    assert main([SPEC, "--host", kubeflow.url]) == 0
    assert (len(kubeflow.versions), len(kubeflow.runs)) == (1, 1)


def test_a_refusal_is_told(kubeflow, capsys):
    kubeflow.trouble = 403
    assert main([SPEC, "--host", kubeflow.url]) == 1
    assert "Kubeflow refused: 403" in capsys.readouterr().err


def test_trouble_on_the_way_is_told(kubeflow, capsys):
    kubeflow.broken = "/pipelines"
    assert main([SPEC, "--host", kubeflow.url]) == 1
    assert f"Kubeflow refused {pipeline_version('llm')}: 500" in capsys.readouterr().err
    assert not kubeflow.versions


def test_a_server_that_is_away_is_told(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert main([SPEC, "--host", f"http://127.0.0.1:{taken.getsockname()[1]}"]) == 1
    assert "Kubeflow is away" in capsys.readouterr().err


def test_an_unknown_spec_is_told(capsys):
    assert main(["nothing", "--host", "http://127.0.0.1:9"]) == 1
    assert "nothing: not a spec that can be read" in capsys.readouterr().err
