import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from kfp.local.config import LocalExecutionConfig

from pipelines.kubeflow import (
    COMPILED,
    IMAGE,
    PipelineFailed,
    compile_to,
    pipeline_version,
    run_locally,
)
from tests.pipelines.stage_script import ROOT, StageScript

SPEC = 'name: "extractor"\nnote: "Åse said: \'{{ x }}\' # $HOME\\n\\"x\\""\n'


@pytest.fixture
def script(tmp_path: Path, monkeypatch) -> StageScript:
    """Tasks of a local run see the environment as it is."""
    made = StageScript(tmp_path)
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # Python looks there first
    return made


@pytest.fixture(scope="module")
def compiled() -> dict:
    ir: dict = yaml.safe_load(COMPILED.read_text())
    return ir


def test_the_committed_ir_is_what_the_code_compiles_to(tmp_path):
    compile_to(tmp_path / "train_llm.yaml")
    fresh = (tmp_path / "train_llm.yaml").read_text()
    assert fresh == COMPILED.read_text(), "run: python -m pipelines.kubeflow"
    assert [path.name for path in tmp_path.iterdir()] == ["train_llm.yaml"]


def test_every_component_is_one_import_and_one_call(compiled):
    for name, executor in compiled["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["image"] == IMAGE
        body = container["command"][-1].partition('"""\n')[2]
        stage = name.removeprefix("exec-")
        assert re.fullmatch(
            rf'    from pipelines\.component import run_stage\n\n    run_stage\("{stage}", .*\)\n',
            body.rstrip("\n") + "\n",
        ), body
        assert not any("pip install" in part for part in container["command"])


def test_resources_retries_and_caching_are_set(compiled):
    for executor in compiled["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert {"resourceCpuLimit", "resourceMemoryRequest"} <= resources.keys()
    tasks = compiled["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if task["cachingOptions"]} == {"train"}
    assert all(task["retryPolicy"]["maxRetryCount"] == 3 for task in tasks.values())


def test_the_image_is_this_release():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{project['name']}:{project['version']}" == IMAGE


def test_a_local_run_goes_through_all_stages(script, tmp_path):
    folders = run_locally(SPEC, tmp_path / "runs")
    assert script.calls == ["dataset", "train", "evaluate", "register"]
    assert set(folders) == {"dataset", "training", "evaluation", "version"}
    version = json.loads((folders["version"] / "version.json").read_text())
    assert version["spec"] == SPEC
    assert version["verdict"]["size"] == len((folders["dataset"] / "train.jsonl").read_text())
    assert all(tmp_path / "runs" in folder.parents for folder in folders.values())
    assert LocalExecutionConfig.instance is None


def test_a_failed_stage_ends_a_local_run(script, tmp_path, capfd):
    script.say(examples=30, fail="train")
    with pytest.raises(PipelineFailed, match="train"):
        run_locally(SPEC, tmp_path / "runs")
    assert script.calls == ["dataset", "train"]
    assert "train was told to fail" in capfd.readouterr().out
    assert LocalExecutionConfig.instance is None


def test_a_spec_that_kubeflow_would_change_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"spec: .*\{\{\$"):
        run_locally("note: '{{$.pipeline_job_name}}'", tmp_path)


def test_the_version_names_commit_and_ir():
    assert re.fullmatch(r"[0-9a-f]{12}\+[0-9a-f]{12}", pipeline_version())


def test_the_gateway_and_the_command_load_no_kfp_and_no_dvc():
    code = "import sys, deploy.cli, gateway.app, pipelines.workspace, pipelines.datasets\n"
    code += "print([name for name in ('kfp', 'dvc', 'torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
