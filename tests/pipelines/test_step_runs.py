"""What MLflow knows of a pass: a run for it, and one for every step that it took."""

import re
import time
from typing import Any

import pytest

from pipelines.code_version import pipeline_version
from pipelines.mlflow_api import MLflowAPI, MLflowAway
from pipelines.stages import STAGES
from pipelines.step_runs import Noted, tell_step
from tests.pipelines.test_passes import runs
from tests.pipelines.train_home import NAME, teach
from tests.rlhf.feedback_log import FeedbackLog

pytestmark = pytest.mark.timeout(400)  # with what is made once: MLflow, a whole pass


def test_every_step_logs_what_it_was_given_and_what_it_measured(copied):
    """Under the run of its pass; a live pass, so that all of them are taken."""
    teach(FeedbackLog(copied.folder), first=5)  # so that the data are others too
    outcome = copied.run(live=True)
    assert outcome.experiment_id is not None
    api = MLflowAPI(copied.door.url)
    (run_row,) = [row for row in runs(copied) if row.run_id == outcome.run_id]
    found = {tags(run)["stage"]: run for run in logged(api, run_row.run_id)}
    assert found.keys() == {"pass", *STAGES}
    parent = found.pop("pass")["info"]
    assert parent["status"] == "FINISHED"
    for stage, run in found.items():
        said, data = tags(run), run["data"]
        assert run["info"]["status"] == "FINISHED", stage
        assert len(data["params"]) >= 1 and len(data["metrics"]) >= 2, stage
        assert said["mlflow.parentRunId"] == parent["run_id"], stage
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", said["git_sha"]), stage
        assert said["pipeline_version"] == pipeline_version("llm"), stage
        if stage not in ("preprocess", "experiment"):
            assert said["dataset_id"] == outcome.dataset_id, stage
    assert found["train"]["info"]["run_id"] == outcome.training_id
    assert tags(found["experiment"])["experiment_id"] == outcome.experiment_id


def logged(api: MLflowAPI, run_id: str) -> list[dict[str, Any]]:
    """Runs in MLflow of a pass and of its steps."""
    experiment = api.get("experiments/get-by-name", experiment_name=NAME)["experiment"]
    condition = f"tags.run_id = '{run_id}'"
    body = {"experiment_ids": [experiment["experiment_id"]], "filter": condition}
    return list(api.post("runs/search", body).get("runs", []))


def tags(run: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"] for one in run["data"]["tags"]}


def test_steps_that_mlflow_did_not_hear_of_are_told_with_the_next(copied):
    with copied.open() as installation:
        spec, api = copied.spec(), MLflowAPI(copied.door.url)
        noted = Noted({"a": "x"}, {"b": 1.0}, {"run_id": "told-later"})
        copied.shut()
        tell_step(installation, spec, "preprocess", noted, time.time())
        copied.reopen()
        assert logged(api, "told-later") == []
        tell_step(installation, spec, "features", noted, time.time())
        assert {tags(run)["stage"] for run in logged(api, "told-later")} == {
            "preprocess",
            "features",
        }
        assert not list((installation.lifecycle_dir / NAME / "untold").iterdir())


def test_a_run_that_was_begun_before_mlflow_went_away_is_gone_on_with(copied, monkeypatch):
    post = MLflowAPI.post

    def lost(api: MLflowAPI, what: str, body: Any) -> Any:
        if what == "runs/log-batch":
            raise MLflowAway("no answer")
        return post(api, what, body)

    with copied.open() as installation:
        spec, noted = copied.spec(), Noted({"a": "x"}, {"b": 1.0}, {"run_id": "begun-once"})
        with monkeypatch.context() as away:
            away.setattr(MLflowAPI, "post", lost)
            tell_step(installation, spec, "preprocess", noted, time.time())
        tell_step(installation, spec, "features", noted, time.time())
    found = logged(MLflowAPI(copied.door.url), "begun-once")
    assert sorted(tags(run)["stage"] for run in found) == ["features", "preprocess"]
    assert {run["info"]["status"] for run in found} == {"FINISHED"}


def test_a_step_of_before_that_mlflow_refuses_is_put_aside(copied, caplog):
    with copied.open() as installation:
        spec, folder = copied.spec(), installation.lifecycle_dir / NAME / "untold"
        refused = Noted({}, {"b": 1.0}, {"run_id": "put-aside"}, run_id="0" * 32)  # no such run
        copied.shut()
        tell_step(installation, spec, "train", refused, time.time())
        copied.reopen()
        noted = Noted({}, {"b": 1.0}, {"run_id": "put-aside"})
        tell_step(installation, spec, "evaluate", noted, time.time())
        assert [tags(run)["stage"] for run in logged(MLflowAPI(copied.door.url), "put-aside")] == [
            "evaluate"
        ]
        (kept,) = folder.iterdir()
        assert kept.suffix == ".refused" and str(kept) in caplog.text
        with pytest.raises(RuntimeError, match="MLflow does not take a step"):
            tell_step(installation, spec, "train", refused, time.time())
        assert {path.suffix for path in folder.iterdir()} == {".refused"}
