"""Verdicts of looks as runs in a real MLflow server, which also goes away."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import uuid_utils

from evals.records import Decision, MetricResult, Verdict
from gateway.database import now
from pipelines.mlflow_api import MLflowAPI
from pipelines.verdict_runs import NotTold, tell
from tests.gateway_process import free_port
from tests.pipelines.mlflow_server import MLflowServer

EXPERIMENT = "looks"
DRIFTED = MetricResult("answer_refused", 0.02, 0.4, 0.38, 0.3, 0.45, 500, False)
UNKNOWN = MetricResult("question_text", None, None, None, None, None, 0, None)
KEPT = MetricResult("sla_failed", None, 0.0, None, None, None, 500, True)


def verdict(decision: Decision, report: Path | None = None) -> Verdict:
    return Verdict(
        verdict_id=str(uuid_utils.uuid7()),
        subject="drift:assistant@3",
        baseline="reference:abc",
        decision=decision,
        metrics=(DRIFTED, UNKNOWN, KEPT),
        reasons=("answer_refused: share 0.400 against 0.020",),
        evidence={"report": str(report)} if report else {},
        created_at=now(),
    )


class Looker:
    """Reads runs by MLflow's REST API."""

    def __init__(self, url: str):
        self._api = MLflowAPI(url)

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self._api.get("runs/get", run_id=run_id)["run"])

    def experiment(self, run_id: str) -> str:
        identifier = self.run(run_id)["info"]["experiment_id"]
        found = self._api.get("experiments/get", experiment_id=identifier)["experiment"]
        return str(found["name"])

    def files(self, run_id: str) -> dict[str, int]:
        found = self._api.get("artifacts/list", run_id=run_id)
        return {one["path"]: one["file_size"] for one in found.get("files", [])}


@pytest.fixture
def looker(mlflow_server: MLflowServer) -> Looker:
    return Looker(mlflow_server.url)


def pairs(given: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: one["value"] for one in given}


def test_an_alert_is_a_finished_run_with_its_numbers_and_its_report(
    mlflow_server, looker, tmp_path
):
    report = tmp_path / "20260504-alert.html"
    report.write_text("<html>" + "x" * 100_000)
    one = verdict(Decision.ALERT, report)
    run_id = tell(mlflow_server.url, EXPERIMENT, one)
    run = looker.run(run_id)
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"] == "drift:assistant@3 alert"
    assert looker.experiment(run_id) == EXPERIMENT
    tags = pairs(run["data"]["tags"])
    assert (tags["verdict_id"], tags["verdict"]) == (one.verdict_id, "alert")
    assert pairs(run["data"]["metrics"]) == {
        "answer_refused/baseline": 0.02,
        "answer_refused/candidate": 0.4,
        "answer_refused/delta": 0.38,
        "sla_failed/candidate": 0.0,
    }
    files = looker.files(run_id)
    assert files[report.name] == report.stat().st_size
    assert set(files) == {report.name, "verdict.json"}


def test_a_quiet_look_has_its_verdict_alone(mlflow_server, looker, tmp_path):
    report = tmp_path / "20260504-hold.html"
    report.write_text("<html>")
    one = verdict(Decision.HOLD, report)
    assert set(looker.files(tell(mlflow_server.url, EXPERIMENT, one))) == {"verdict.json"}


def test_a_report_that_is_gone_is_no_reason_to_say_nothing(mlflow_server, looker, tmp_path):
    run_id = tell(mlflow_server.url, EXPERIMENT, verdict(Decision.ALERT, tmp_path / "gone.html"))
    assert set(looker.files(run_id)) == {"verdict.json"}


def test_away_is_said_with_the_verdicts_id():
    one = verdict(Decision.ALERT)
    with pytest.raises(NotTold) as away:
        tell(f"http://127.0.0.1:{free_port()}", EXPERIMENT, one)
    assert f"verdict {one.verdict_id} is not in MLflow" in str(away.value)


def test_what_was_told_can_be_read_as_the_verdict(mlflow_server, looker, tmp_path):
    one = verdict(Decision.ALERT)
    run_id = tell(mlflow_server.url, EXPERIMENT, one)
    address = f"{mlflow_server.url}/get-artifact?path=verdict.json&run_uuid={run_id}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        said = json.loads(answer.read())
    assert said["verdict_id"] == one.verdict_id
    assert said["metrics"][0]["candidate"] == 0.4
