"""Whole passes of the train pipeline: real stages in DVC, real training, a real MLflow."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from deploy.commands.lineage import sources_of
from evals.verdicts import find_verdict
from gateway.configuration import ConfigurationError
from gateway.database import Conflict
from gateway.feedback import FeedbackRow
from gateway.splits import all_splits
from pipelines import llm
from pipelines.kubeflow import run_locally
from pipelines.lifecycle import evaluate, require_usable
from pipelines.lineage_check import check_one
from pipelines.mlflow_api import MLflowAPI
from pipelines.passes import Progress
from pipelines.registry import Registry
from pipelines.rollout import RolloutFailed
from pipelines.tables import (
    DatasetExampleRow,
    DatasetRow,
    ModelVersionRow,
    PromotionRow,
    RunRow,
    TrainingRow,
)
from pipelines.workspace import StageFailed
from rlhf.adapter import base_digest, inspect, served_name
from tests.pipelines.scripted_engine import BASE
from tests.pipelines.train_home import NAME, STEPS, WRONG, TrainHome, answer, teach
from tests.rlhf.feedback_log import FeedbackLog
from tests.rlhf.tiny_model import write_tiny_model

pytestmark = pytest.mark.timeout(400)  # with what is made once: MLflow, a whole pass


def rows(home: TrainHome, table: Any) -> list[Any]:
    with home.open() as installation, installation.database.session() as session:
        return list(session.scalars(select(table)))


def runs(home: TrainHome) -> list[RunRow]:
    """Its passes, oldest first."""
    return sorted(rows(home, RunRow), key=lambda row: row.run_id)


def require_untouched(home: TrainHome) -> None:
    """Whoever answered before answers still."""
    assert rows(home, PromotionRow) == []
    with home.open() as installation, installation.database.session() as session:
        assert not all_splits(session)
        assert Registry(installation.tracking_uri()).aliases(NAME) == {}


def chats(home: TrainHome) -> list[str]:
    """Who was asked by the evaluations, in order."""
    return [body["model"] for path, body in home.engine.calls if path.endswith("completions")]


def at(stage: str, action: Callable[[], Any], what: str = "") -> Progress:
    """Does `action` once, when a pass says `what` in `stage`; at its beginning by default."""
    waiting = [action]

    def show(shown: str, percent: int, said: str) -> None:
        if waiting and shown == stage and (said.startswith(what) if what else percent == 0):
            waiting.pop()()

    return show


class Steps:
    """Notes the steps of a training that a pass tells of."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __call__(self, stage: str, percent: int, said: str) -> None:
        found = re.match(r"step (\d+)/\d+ loss", said)
        if found:
            self.taken.append(int(found[1]))


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_pass_goes_from_feedback_to_a_registered_version(trained):
    run = runs(trained)[0]
    (dataset,), (training,) = rows(trained, DatasetRow), rows(trained, TrainingRow)
    (version,) = rows(trained, ModelVersionRow)
    assert (run.state, run.stage, run.message) == ("finished", "register", None)
    made = (run.dataset_id, run.training_id, run.verdict_id, run.version)
    assert made == (
        dataset.dataset_id, training.training_id, version.verdict_id, version.version
    )  # fmt: skip
    heard = {row.feedback_id for row in rows(trained, FeedbackRow)}
    assert {row.feedback_id for row in rows(trained, DatasetExampleRow)} == heard

    info = inspect(trained.folder / "adapters" / version.served_name)
    assert version.served_name == training.served_name == served_name(NAME, info)
    assert training.digest == info.digest
    assert training.base_digest == base_digest(trained.folder / "models" / "tiny")
    assert training.metrics["last_loss"] < training.metrics["first_loss"]

    with trained.open() as installation, installation.database.session() as session:
        verdict = find_verdict(session, str(version.verdict_id))
        assert verdict is not None
        assert (verdict.decision, verdict.subject, verdict.baseline) == (
            "promote", version.served_name, "base"
        )  # fmt: skip
        assert verdict.evidence["training_id"] == training.training_id
        report = check_one(sources_of(installation, data=False), NAME, version.version)
    assert [link.to for link in report.broken] == ["key key-1"]  # there was no gateway
    assert chats(trained) == [BASE] * 24 + [version.served_name] * 24
    assert trained.engine.adapters == {version.served_name: version.path}
    require_untouched(trained)


def test_mlflow_knows_of_it_all(trained):
    (training,), (version,) = rows(trained, TrainingRow), rows(trained, ModelVersionRow)
    api = MLflowAPI(trained.door.url)
    run = api.get("runs/get", run_id=training.training_id)["run"]
    assert run["info"]["status"] == "FINISHED"
    assert losses(api, training.training_id) == list(range(1, STEPS + 1))
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    listed = api.get("artifacts/list", run_id=training.training_id, path="verdicts")["files"]
    assert f"verdicts/{version.verdict_id}.json" in [one["path"] for one in listed]
    assert tags["base_digest"] == training.base_digest
    found = Registry(trained.door.url).version(NAME, version.version)
    assert found is not None and found.training_id == training.training_id
    assert found.tags["digest"] == training.digest
    assert found.tags["dataset_id"] == training.dataset_id


def losses(api: MLflowAPI, training_id: str) -> list[int]:
    """Steps whose loss is in MLflow."""
    found = api.get("metrics/get-history", run_id=training_id, metric_key="loss")
    return sorted(one["step"] for one in found["metrics"])


def test_an_unchanged_rerun_trains_asks_and_registers_nothing(trained):
    before, asked, steps = rows(trained, ModelVersionRow), len(trained.engine.calls), Steps()
    outcome = trained.run(steps)
    first, second = runs(trained)[0], runs(trained)[-1]
    assert steps.taken == [] and len(trained.engine.calls) == asked
    assert [row.version for row in rows(trained, ModelVersionRow)] == [before[0].version]
    assert outcome.version == before[0].version
    for name in ("dataset_id", "training_id", "verdict_id", "version", "state"):
        assert getattr(second, name) == getattr(first, name), name


def test_a_worse_candidate_is_not_registered(copied):
    copied.engine.answer = lambda body: (
        answer({**body, "model": "adapter"}) if body["model"] == BASE else WRONG
    )
    outcome = copied.run()
    assert (outcome.verdict.decision, outcome.version) == ("reject", None)
    last = runs(copied)[-1]
    assert (last.state, last.stage, last.version) == ("finished", "gate", None)
    assert str(last.message).startswith("reject: exact_match: 0.000 against 1.000")
    assert last.verdict_id == outcome.verdict.verdict_id
    assert len(rows(copied, ModelVersionRow)) == 1
    require_untouched(copied)


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"dataset": {"tenant": "nobody"}}, "features", "0 examples of 0 users; at least 8 of 2"),
        ({"dataset": {"tenant": "solo"}}, "features", "one user makes up 19 of 20 examples"),
        ({"training": {"rank": 32}}, "starting", "training.rank: 32 is above the engine's 16"),
        pytest.param(
            {"training": {"learning_rate": 1e30}},
            "train",
            "the training diverged in step",
            marks=pytest.mark.slow,
        ),
        (
            {"training": {"base_model": "none"}},
            "starting",
            "base_model: 'none' is neither a model in",
        ),
    ],
)
def test_what_cannot_be_trained_on_ends_with_its_reason(copied, changes, stage, message):
    log = FeedbackLog(copied.folder)
    for number in range(20):
        said = log.ask(f"{number}?", user="ann" if number else "ben", model=NAME, tenant="solo")
        log.give(said, "demonstration", {"city": f"{number}"}, "solo")
    log.write()
    with pytest.raises((StageFailed, ConfigurationError), match=re.escape(message)):
        copied.run(**changes)
    run = runs(copied)[-1]
    assert (run.state, run.stage, run.training_id) == ("failed", stage, None)
    assert message in str(run.message) and "Traceback" not in str(run.message)
    assert run.ended_at is not None
    (training,) = rows(copied, TrainingRow)
    assert [path.name for path in (copied.folder / "adapters").iterdir()] == [training.served_name]
    assert copied.engine.calls == []
    require_untouched(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "forest"}, "kind: no kind 'forest'"),
        ({"training": {"ranks": 4}}, "training.ranks: no such key"),
        ({"training": {"rank": 0}}, "training: rank: 0: must be at least 1"),
        ({"training": {"learning_rate": "soon"}}, "training.learning_rate: "),
        ({"evaluation": {"scorers": ["taste"]}}, "evaluation.scorers: no 'taste'"),
        ({"evaluation": {"scorers": ["latency"]}}, "gate: exact_match is none of"),
        ({"alias": "nobody"}, "alias: no model 'nobody'"),
    ],
)
def test_mistakes_that_would_show_after_the_training_are_found_before(trained, changes, message):
    given = trained.spec(**changes)
    with trained.open() as installation:
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            require_usable(installation, given)
        require_usable(installation, trained.spec(training={"learning_rate": "5e-4"}))


def test_another_base_than_the_adapters_is_refused_before_the_engine_sees_it(copied, tmp_path):
    write_tiny_model(tmp_path / "other", seed=8)
    weights = copied.folder / "models" / "tiny" / "model.safetensors"
    swap = at("evaluate", lambda: os.replace(tmp_path / "other" / weights.name, weights))
    copied.engine.adapters.clear()
    with pytest.raises(StageFailed, match="was trained on another base"):
        copied.run(swap)
    last = runs(copied)[-1]
    assert (last.state, last.stage, last.verdict_id) == ("failed", "evaluate", None)
    assert copied.engine.loads() == []
    require_untouched(copied)


@pytest.mark.slow
def test_an_engine_that_goes_away_is_no_verdict(copied):
    def broken(_body: dict[str, Any]) -> str:
        raise RuntimeError("out of memory")

    copied.engine.answer = broken  # each chat is answered 500
    with pytest.raises(StageFailed, match="24 of 24 cases got no answer from base, so nothing"):
        copied.run()
    with pytest.raises(StageFailed, match=r"is not rolled out: http.*: is away"):
        copied.run(at("evaluate", lambda: copied.backstage.run(copied.engine.go_away())))
    failed = runs(copied)[-2:]
    assert [(one.state, one.stage) for one in failed] == [("failed", "evaluate")] * 2
    assert all(one.training_id and one.verdict_id is None for one in failed)
    assert failed[0].dataset_id == failed[1].dataset_id
    require_untouched(copied)

    teach(FeedbackLog(copied.folder), first=5)
    with pytest.raises(ZeroDivisionError):
        copied.run(at("train", lambda: 1 / 0))
    assert runs(copied)[-1].dataset_id not in (None, failed[0].dataset_id)  # not a third time
    with pytest.raises(StageFailed, match="40 examples of 10 users; at least 1000"):
        copied.run(dataset={"minimum": 1000})  # another data set was asked for, so it is made
    copied.backstage.run(copied.engine.come_back())


def test_an_engine_that_never_lists_the_adapter(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(llm, "ROLLOUT_SECONDS", 0.3)
    copied.engine.invisible = True
    training = copied.folder / "lifecycle" / NAME / "training"
    with copied.open() as installation, pytest.raises(RolloutFailed, match="does not list it"):
        evaluate(
            installation, copied.spec(), training, training, tmp_path, lambda *_: None
        )  # the data set is not looked at
    assert copied.engine.adapters == {} and chats(copied) == []


@pytest.mark.slow
def test_a_kill_and_mlflow_away_three_times_cost_no_step(blank, trained):
    blank.shut()
    with pytest.raises(StageFailed, match=r"is away: .*; no training was started"):
        blank.run()
    blank.reopen()
    done = killed_in_training(blank)
    teach(FeedbackLog(blank.folder), first=5)  # feedback goes on; it is for the pass after this

    steps = Steps()
    with pytest.raises(StageFailed, match="work/fitted is whole, but not in MLflow's run"):
        blank.run(every(steps, at("train", blank.shut, "step")))
    assert steps.taken == list(range(done + 1, STEPS + 1))
    blank.reopen()
    steps = Steps()
    with pytest.raises(StageFailed, match="the model registry is away"):
        blank.run(every(steps, at("register", blank.shut)))
    assert rows(blank, ModelVersionRow) == []
    blank.reopen()
    asked = len(chats(blank))
    outcome = blank.run(steps)
    assert steps.taken == [] and len(chats(blank)) == asked == 48

    ended = [(run.state, run.stage) for run in runs(blank)]
    assert ended == [
        ("failed", "train"), ("interrupted", "train"), ("failed", "train"),
        ("failed", "register"), ("finished", "register"),
    ]  # fmt: skip
    assert runs(blank)[1].message == "its process ended in stage train"
    (version,), (training,) = rows(blank, ModelVersionRow), rows(blank, TrainingRow)
    once = rows(trained, TrainingRow)[0]
    assert (outcome.version, version.served_name) == (version.version, once.served_name)
    assert (training.digest, training.dataset_id) == (once.digest, once.dataset_id)
    assert losses(MLflowAPI(blank.door.url), training.training_id) == list(range(1, STEPS + 1))
    assert not blank.work.exists()
    require_untouched(blank)


def killed_in_training(home: TrainHome) -> int:
    """Kill a pass with all its processes in the middle; how many steps its last checkpoint has."""
    with (home.folder / "output").open("wb") as output:
        process = subprocess.Popen(
            home.command("train", "llm", str(home.spec_path)),
            cwd=home.folder,
            env=home.environ,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: runs(home)[-1].stage == "train" and home.work.exists())
        with pytest.raises(Conflict, match=r"under way \(see: llmops train status cities\)"):
            home.run()
        wait_until(lambda: checkpoint(home) >= 4)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert runs(home)[-1].state == "running"
    assert rows(home, TrainingRow) == []
    return checkpoint(home)


def checkpoint(home: TrainHome) -> int:
    """Steps of the newest whole checkpoint."""
    sealed = home.work.glob("fitted.checkpoints/checkpoint-*/sealed.json")
    return max((int(one.parent.name.removeprefix("checkpoint-")) for one in sealed), default=0)


def every(*shows: Progress) -> Progress:
    """Tells all of them."""

    def show(stage: str, percent: int, said: str) -> None:
        for one in shows:
            one(stage, percent, said)

    return show


@pytest.mark.slow
def test_kubeflows_local_runner_makes_the_same_adapter(blank, trained, tmp_path, monkeypatch):
    for name, value in blank.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(blank.folder)
    folders = run_locally("llm", blank.spec().text(), tmp_path / "runs", live=False)
    (training,), (version,) = (
        rows(blank, TrainingRow),
        rows(blank, ModelVersionRow),
    )
    once = rows(trained, TrainingRow)[0]
    assert (training.digest, training.dataset_id) == (once.digest, once.dataset_id)
    said = json.loads((folders["version"] / "version.json").read_text())
    assert said == {"name": NAME, "version": version.version}
    assert inspect(folders["training"] / "model").digest == once.digest
    require_untouched(blank)
