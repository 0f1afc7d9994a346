"""The schedule's jobs for Kubeflow: the compiled pipeline, run on this machine, and what a cluster
would be asked for. No cluster is here."""

import inspect
from pathlib import Path

import pytest
import yaml
from kfp import Client, components, local
from kfp.local.config import LocalExecutionConfig

from deploy.recurring_runs import COMPILED, compile_to, recurring_run, submit
from deploy.schedule_plan import SchedulePlan
from pipelines.kubeflow import IMAGE

PLAN = SchedulePlan.model_validate(
    {
        "jobs": {
            "drift": {"every": "24h", "command": ["drift", "check"]},
            "answers": {"every": "6h", "command": ["evals", "run", "assistant"]},
        }
    }
)


def test_the_committed_ir_is_what_the_code_compiles_to(tmp_path):
    compile_to(tmp_path / "job.yaml")
    fresh = (tmp_path / "job.yaml").read_text()
    assert fresh == COMPILED.read_text(), "run: python -m deploy.recurring_runs"
    (executor,) = yaml.safe_load(fresh)["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"] == IMAGE
    assert not any("pip install" in part for part in executor["container"]["command"])


def test_each_job_is_asked_for_as_the_schedule_keeps_it():
    class Asked:
        """Has the signature of the real client's method."""

        def __init__(self) -> None:
            self.made: list[inspect.BoundArguments] = []

        def create_recurring_run(self, *arguments: object, **named: object) -> None:
            signature = inspect.signature(Client.create_recurring_run)
            self.made.append(signature.bind(self, *arguments, **named))

    client = Asked()
    submit(client, PLAN, "experiment-1")
    drift, answers = (one.arguments for one in client.made)
    assert (drift["experiment_id"], drift["job_name"]) == ("experiment-1", "drift")
    assert (drift["interval_second"], answers["interval_second"]) == (86_400, 21_600)
    assert drift["params"] == {"command": ["drift", "check"]}
    assert (drift["max_concurrency"], drift["no_catchup"]) == (1, True)
    declared = yaml.safe_load(Path(drift["pipeline_package_path"]).read_text())
    assert set(declared["root"]["inputDefinitions"]["parameters"]) == set(drift["params"])


@pytest.fixture
def kubeflow(tmp_path, monkeypatch):
    """The compiled pipeline, to be called on this machine in a home of its own."""
    monkeypatch.setenv("LLMOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLMOPS_CONFIG", "")
    before = LocalExecutionConfig.instance
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "runs"), workspace_root=str(tmp_path / "workspace"),
    )  # fmt: skip
    yield components.load_component_from_file(str(COMPILED))
    LocalExecutionConfig.instance = before


@pytest.mark.filterwarnings("ignore:.*non-Python base image:RuntimeWarning")
def test_the_compiled_pipeline_runs_the_command(kubeflow, tmp_path, capfd):
    good = tmp_path / "gateway.yaml"
    good.write_text(
        "upstreams: {up: {url: 'http://127.0.0.1:9/v1'}}\nmodels: {'*': {upstream: up}}"
    )
    kubeflow(**recurring_run("x", PLAN.jobs["drift"])["params"] | {"command": ["check", str(good)]})
    assert "gateway.yaml" in capfd.readouterr().out
    with pytest.raises(RuntimeError, match="FAILURE"):
        kubeflow(command=["check", str(tmp_path / "none.yaml")])
    assert "none.yaml" in capfd.readouterr().out
