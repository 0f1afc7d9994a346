import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from kfp.local.config import LocalExecutionConfig

from pipelines.code_version import COMPILED, compiled, pipeline_version
from pipelines.kubeflow import (
    CACHED,
    IMAGE,
    PIPELINES,
    SMALL,
    PipelineFailed,
    compile_to,
    run_locally,
)
from pipelines.stages import STAGES
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


@pytest.fixture(params=[*PIPELINES])
def kind(request) -> str:
    return str(request.param)


@pytest.fixture
def ir(kind: str) -> dict:
    """The committed IR; its first document, for the second is of the platform."""
    read: dict = next(yaml.safe_load_all(compiled(kind).read_text()))
    return read


def components(ir: dict) -> dict[str, dict]:
    """What the IR says of each stage: its container and its task."""
    executors, tasks = ir["deploymentSpec"]["executors"], ir["root"]["dag"]["tasks"]
    return {
        name: {"container": executors[f"exec-{name}"]["container"], "task": task}
        for name, task in tasks.items()
    }


def test_the_committed_ir_is_what_the_code_compiles_to(kind, tmp_path):
    compile_to(tmp_path / "train.yaml", kind)
    fresh = (tmp_path / "train.yaml").read_text()
    assert fresh == compiled(kind).read_text(), "run: python -m pipelines.kubeflow"
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]
    committed = {path.name for path in COMPILED.glob("train_*.yaml")}
    assert committed == {compiled(one).name for one in PIPELINES}


def test_every_stage_is_a_component_of_one_import_and_one_call(ir):
    assert components(ir).keys() == STAGES.keys()
    for stage, component in components(ir).items():
        container = component["container"]
        assert container["image"] == IMAGE
        body = container["command"][-1].partition('"""\n')[2]
        assert re.fullmatch(
            rf'    from pipelines\.component import run_stage\n\n    run_stage\("{stage}", .*\)\n',
            body.rstrip("\n") + "\n",
        ), body
        assert not any("pip install" in part for part in container["command"])


def test_resources_retries_and_caching_are_set(kind, ir):
    for stage, component in components(ir).items():
        wanted = PIPELINES[kind][1].get(stage, SMALL)
        resources, task = component["container"]["resources"], component["task"]
        for bound in ("Request", "Limit"):
            assert resources[f"resourceCpu{bound}"] == wanted.cpu
            assert resources[f"resourceMemory{bound}"] == wanted.memory
        assert task["retryPolicy"]["maxRetryCount"] == 3
        assert task["cachingOptions"].get("enableCache", False) == (stage in CACHED)


def test_the_image_is_this_release():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{project['name']}:{project['version']}" == IMAGE


def test_a_local_run_goes_through_all_stages(kind, script, tmp_path):
    folders = run_locally(kind, SPEC, tmp_path / "runs", live=kind == "tabular")
    *before, _ = STAGES
    assert script.calls == [*before, "experiment" if kind == "tabular" else "idle"]
    assert set(folders) == {"dataset", "training", "evaluation", "verdict", "version"}
    version = json.loads((folders["version"] / "version.json").read_text())
    assert version["spec"] == SPEC
    assert version["verdict"]["size"] == len((folders["dataset"] / "train.jsonl").read_text())
    assert all(tmp_path / "runs" in folder.parents for folder in folders.values())
    assert LocalExecutionConfig.instance is None


def test_a_failed_stage_ends_a_local_run(script, tmp_path, capfd):
    script.say(examples=30, fail="train")
    with pytest.raises(PipelineFailed, match="train"):
        run_locally("llm", SPEC, tmp_path / "runs")
    assert script.calls == ["preprocess", "features", "train"]
    assert "train was told to fail" in capfd.readouterr().out
    assert LocalExecutionConfig.instance is None


def test_a_spec_that_kubeflow_would_change_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"spec: .*\{\{\$"):
        run_locally("llm", "note: '{{$.pipeline_job_name}}'", tmp_path)


def test_the_version_names_commit_and_ir():
    both = {pipeline_version(kind) for kind in PIPELINES}
    assert len(both) == 2
    assert all(re.fullmatch(r"[0-9a-f]{12}\+[0-9a-f]{12}", one) for one in both)


def test_the_gateway_and_the_command_load_no_kfp_and_no_dvc():
    code = "import sys, deploy.cli, gateway.app, pipelines.workspace, pipelines.datasets\n"
    code += "print([name for name in ('kfp', 'dvc', 'torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
