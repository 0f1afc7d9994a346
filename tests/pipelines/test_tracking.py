"""Training runs in a real MLflow server, which also freezes and goes away in the middle."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from evals.records import Decision, MetricResult, Verdict
from gateway.database import now
from pipelines.metric_journal import MetricJournal
from pipelines.mlflow_api import MLflowAPI
from pipelines.tracking import Tracking, TrackingUnavailable
from tests.gateway_process import free_port
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.silent_server import silent_server

TAGS = {"dataset_id": "d1", "base_digest": "b1", "run_id": "r1", "git_sha": None}
PARAMS = {"rank": 8, "learning_rate": 5e-4, "target_modules": "all-linear"}


class Looker:
    """Reads runs by MLflow's REST API."""

    def __init__(self, url: str):
        self._api = MLflowAPI(url)

    def run(self, training_id: str) -> dict[str, Any]:
        return dict(self._api.get("runs/get", run_id=training_id)["run"])

    def status(self, training_id: str) -> str:
        return str(self.run(training_id)["info"]["status"])

    def data(self, training_id: str, what: str) -> dict[str, Any]:
        return {one["key"]: one["value"] for one in self.run(training_id)["data"].get(what, [])}

    def history(self, training_id: str, key: str) -> list[tuple[int, float]]:
        found = self._api.get("metrics/get-history", run_id=training_id, metric_key=key)
        return [(one["step"], one["value"]) for one in found.get("metrics", [])]

    def files(self, training_id: str, path: str) -> dict[str, int]:
        found = self._api.get("artifacts/list", run_id=training_id, path=path)
        return {one["path"]: one.get("file_size", 0) for one in found.get("files", [])}


@pytest.fixture
def looker(mlflow_server: MLflowServer) -> Looker:
    return Looker(mlflow_server.url)


@pytest.fixture
def tracking(mlflow_server: MLflowServer) -> Tracking:
    return Tracking(mlflow_server.url, seconds=1, send_seconds=0.05)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_training_is_a_run(tracking, looker, tmp_path):
    adapter = tmp_path / "adapter"
    (adapter / "deep").mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "deep" / "weights with space.bin").write_bytes(b"x" * 3_000_000)
    journal = tmp_path / "metrics.jsonl"
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=journal) as run:
        assert looker.status(run.training_id) == "RUNNING"
        for step in range(1, 21):
            run.log(step, {"loss": 1 / step, "learning_rate": 5e-4})
        run.artifacts(adapter)
    found = looker.run(run.training_id)["info"]
    assert found["status"] == "FINISHED"
    assert found["end_time"] >= found["start_time"]
    assert looker.data(run.training_id, "params") == {k: str(v) for k, v in PARAMS.items()}
    assert looker.data(run.training_id, "tags").items() >= {
        ("dataset_id", "d1"), ("base_digest", "b1"), ("run_id", "r1"),
    }  # fmt: skip
    assert "git_sha" not in looker.data(run.training_id, "tags")
    assert looker.history(run.training_id, "loss") == [(step, 1 / step) for step in range(1, 21)]
    assert looker.files(run.training_id, "model")["model/adapter_config.json"] == 2
    assert looker.files(run.training_id, "model/deep") == {
        "model/deep/weights with space.bin": 3_000_000
    }


def test_metrics_arrive_while_it_goes(tracking, looker, tmp_path):
    journal = tmp_path / "metrics.jsonl"
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=journal) as run:
        run.log(1, {"loss": 2.0})
        wait_until(lambda: looker.history(run.training_id, "loss") == [(1, 2.0)])


def test_what_is_no_number_arrives_and_many_steps_take_several_calls(tracking, looker, tmp_path):
    journal = tmp_path / "metrics.jsonl"
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=journal) as run:
        run.log(1, {"loss": math.nan, "up": math.inf, "down": -math.inf})
        for step in range(2, 2502):
            run.log(step, {"loss": 0.5})
    last = looker.data(run.training_id, "metrics")
    assert last["loss"] == 0.5
    assert last["up"] > 1e300
    assert last["down"] < -1e300
    assert len(looker.history(run.training_id, "loss")) == 2501


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_how_it_ended(tracking, looker, tmp_path, error, status):
    started = tracking.start("track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl")
    with pytest.raises(type(error)), started as run:
        run.log(1, {"loss": 2.0})
        raise error
    assert looker.status(run.training_id) == status
    assert looker.history(run.training_id, "loss") == [(1, 2.0)]


def test_mlflow_freezes_for_a_while_and_nothing_is_missing(
    tracking, looker, mlflow_server, tmp_path
):
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl") as run:
        run.log(1, {"loss": 1.0})
        wait_until(lambda: looker.history(run.training_id, "loss") == [(1, 1.0)])
        with mlflow_server.frozen():
            began = time.monotonic()
            for step in range(2, 202):
                run.log(step, {"loss": 1.0})
            assert time.monotonic() - began < 0.5  # the training does not wait
            time.sleep(1.5)  # a call that is under way runs into its deadline
        run.log(202, {"loss": 1.0})
    assert looker.status(run.training_id) == "FINISHED"
    steps = [step for step, _ in looker.history(run.training_id, "loss")]
    assert sorted(steps) == list(range(1, 203))


def test_away_at_the_end_a_second_attempt_goes_on_in_the_same_run(
    tracking, looker, mlflow_server, tmp_path
):
    journal = tmp_path / "metrics.jsonl"
    began = time.monotonic()
    started = tracking.start("track", tags=TAGS, params=PARAMS, journal=journal)
    kept = pytest.raises(TrackingUnavailable, match=r"kept in .*metrics\.jsonl; run it again")
    with kept, mlflow_server.frozen(), started as run:
        for step in (1, 2, 3):
            run.log(step, {"loss": float(step)})
    assert time.monotonic() - began < 5
    first = run.training_id
    second_tags = {**TAGS, "run_id": "r2"}
    with tracking.start("track", tags=second_tags, params=PARAMS, journal=journal) as run:
        assert run.training_id == first
        run.log(3, {"loss": 3.5})  # taken again after the last checkpoint: kept once
        run.log(4, {"loss": 4.0})
    assert looker.status(first) == "FINISHED"
    assert looker.data(first, "tags")["run_id"] == "r2"
    assert looker.history(first, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_artifacts_while_mlflow_is_away(tracking, looker, mlflow_server, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "weights.bin").write_bytes(b"x" * 20_000_000)
    started = tracking.start("track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl")
    kept = pytest.raises(TrackingUnavailable, match="adapter is whole, but not in MLflow")
    with kept, started, mlflow_server.frozen():
        started.artifacts(adapter)
    assert looker.status(started.training_id) == "FAILED"
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl") as run:
        run.artifacts(adapter)
        run.artifacts(adapter)
    assert run.training_id == started.training_id
    assert looker.files(run.training_id, "model") == {"model/weights.bin": 20_000_000}


def test_another_training_is_another_run_and_the_left_one_ends(tracking, looker, tmp_path):
    journal = tmp_path / "metrics.jsonl"
    left = tracking.start("track", tags=TAGS, params=PARAMS, journal=journal).training_id
    same = tracking.start("track", tags=TAGS, params=dict(PARAMS), journal=journal).training_id
    assert (same, looker.status(left)) == (left, "RUNNING")
    data = tracking.start(
        "track", tags={**TAGS, "dataset_id": "d2"}, params=PARAMS, journal=journal
    )
    assert data.training_id != left
    assert looker.status(left) == "KILLED"
    other = tracking.start("track", tags=TAGS, params={**PARAMS, "rank": 16}, journal=journal)
    assert other.training_id not in (left, data.training_id)


def test_without_mlflow_nothing_starts(tmp_path):
    began = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="no training was started"):
        Tracking(f"http://127.0.0.1:{free_port()}").start(
            "track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl"
        )
    with silent_server() as url, pytest.raises(TrackingUnavailable, match="does not answer"):
        Tracking(url, seconds=1).start("t", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl")
    assert time.monotonic() - began < 3
    assert not (tmp_path / "m.jsonl").exists()


def test_a_verdict_is_in_the_run_it_judges(tracking, looker, tmp_path):
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl") as run:
        pass
    verdict = Verdict(
        verdict_id="0190-verdict",
        subject="extractor-3f2a90c1d4e5",
        baseline="base",
        decision=Decision.PROMOTE,
        metrics=(
            MetricResult("exact_match", 0.0, 0.78, 0.78, 0.72, 0.83, 240, True),
            MetricResult("latency_ms", 120.0, None, None, None, math.inf, 240, None),
        ),
        reasons=("exact_match rose",),
        evidence={"dataset_id": "d1"},
        created_at=now(),
    )
    for _ in range(2):
        tracking.verdict(run.training_id, verdict)
    metrics = looker.data(run.training_id, "metrics")
    assert metrics["gate/exact_match/candidate"] == 0.78
    assert metrics["gate/exact_match/ci_low"] == 0.72
    assert "gate/latency_ms/candidate" not in metrics
    tags = looker.data(run.training_id, "tags")
    assert (tags["verdict"], tags["verdict_id"]) == ("promote", "0190-verdict")
    (name,) = looker.files(run.training_id, "verdicts")
    assert name == "verdicts/0190-verdict.json"
    assert looker.status(run.training_id) == "FINISHED"
    with pytest.raises(TrackingUnavailable, match="Run with id=nobody not found"):
        tracking.verdict("nobody", verdict)


def test_logging_costs_a_training_next_to_nothing(tracking, tmp_path, mlflow_server):
    with tracking.start("track", tags=TAGS, params=PARAMS, journal=tmp_path / "m.jsonl") as run:
        began = time.perf_counter()
        for step in range(1000):
            run.log(step, {"loss": 0.1, "grad_norm": 0.2, "learning_rate": 0.3})
        each = (time.perf_counter() - began) / 1000
    assert each < 0.005  # a step takes more than 0.1 s: below 5 % of it, also on a busy machine


def test_a_journal_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = MetricJournal(path, {"rank": "8"})
    journal.append(1, {"loss": 1.0})
    journal.append(2, {"loss": math.nan})
    journal.close()
    with path.open("a") as file:
        file.write('{"key": "loss", "val')
    again = MetricJournal(path, {"rank": "8"})
    again.append(3, {"loss": 3.0})
    again.close()
    assert again.start_id == journal.start_id
    assert again.replaced is None
    assert [row["step"] for row in again.unsent()] == [1, 2, 3]
    assert [json.loads(line).get("step") for line in path.read_text().splitlines()] == [
        None, 1, 2, 3,
    ]  # fmt: skip
    other = MetricJournal(path, {"rank": "16"})
    other.close()
    assert other.replaced == journal.start_id
    assert other.unsent() == []
