"""`llmops demo` on the real stack: a model trained, judged, tried on users, promoted, and undone.

What it says is held against an account of its own, derived from the stores (`derived_chain.py`).
"""

import hashlib
import json
import re
import shutil
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, RunningStack, run_llmops
from tests.e2e.derived_chain import (
    DerivedChain,
    Stores,
    derive,
    digest_of_dataset,
    exact_match,
    heard,
)

SEED = 7
NAME = "extractor"
DEMO_SECONDS = 900
IN_FORCE_SECONDS = 2.0
GOLDEN = ROOT / "evals" / "golden" / "extraction.jsonl"


@dataclass(frozen=True)
class Demo:
    """What the demo left: its page, the stores, and the chain as derived from them."""

    page: str
    stores: Stores
    chain: DerivedChain


@pytest.fixture(scope="module")
def demo(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    page = tmp_path_factory.mktemp("demo") / "demo.md"
    arguments = ("demo", "--quick", "--seed", str(SEED), "--out", str(page))
    done = run_llmops(*arguments, environ=stack.environ, seconds=DEMO_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    stores = Stores(stack.home, stack.mlflow_url)
    _wait_for_the_shipper(stores)
    return Demo(page.read_text(), stores, derive(stores, NAME))


def _wait_for_the_shipper(stores: Stores) -> None:
    """Until the table has every request that there is feedback on."""
    deadline = time.monotonic() + 60
    wanted = {row["request_id"] for row in stores.rows("SELECT request_id FROM feedback")}
    while not wanted <= stores.log.keys():
        assert time.monotonic() < deadline, "the shipper did not come round"
        del stores.log
        time.sleep(1)


def test_it_came_out_and_says_what_the_stores_say(demo: Demo) -> None:
    assert "expectations were met" in demo.page
    chain = demo.chain
    for identifier in (
        chain.dataset["dataset_id"], chain.training["training_id"], chain.verdict["verdict_id"],
        chain.version["served_name"], chain.experiment["experiment_id"],
        chain.decision["verdict_id"], chain.promotion["promotion_id"],
    ):  # fmt: skip
        assert identifier in demo.page


def test_three_experiments_ended_as_they_should(demo: Demo) -> None:
    trials = demo.stores.rows("SELECT * FROM experiment ORDER BY experiment_id")
    assert [one["state"] for one in trials] == ["promoted", "held", "rolled_back"]
    adapter = demo.chain.version["served_name"]
    arms = [[arm["variant"]["adapter"] for arm in one["arms"]] for one in trials]
    assert arms[:2] == [[None, adapter], [adapter, adapter]]
    assert arms[2][0] == adapter != arms[2][1]
    ruined = demo.stores.one("SELECT * FROM model_version WHERE version = ?", trials[2]["version"])
    assert ruined["served_name"] == arms[2][1] and ruined["verdict_id"] is None


def test_the_registry_names_what_the_database_names(demo: Demo) -> None:
    chain, mlflow = demo.chain, demo.stores.mlflow
    tags = chain.champion.tags
    run = mlflow.get_run(chain.champion.run_id)
    assert chain.champion.run_id == chain.version["training_id"]
    assert tags["dataset_id"] == run.data.tags["dataset_id"] == chain.dataset["dataset_id"]
    assert tags["verdict_id"] == chain.verdict["verdict_id"]
    assert tags["digest"] == chain.training["digest"]
    assert run.info.status == "FINISHED" and run.data.metrics["loss"] < 1
    aliases = mlflow.get_registered_model(NAME).aliases
    assert aliases == {"champion": chain.promotion["to_version"]}


def test_the_served_adapter_is_the_logged_one(demo: Demo, tmp_path: Path) -> None:
    kept = Path(demo.chain.version["path"])
    run_id = demo.chain.version["training_id"]
    from mlflow.artifacts import download_artifacts

    fetched = Path(
        download_artifacts(
            run_id=run_id, artifact_path="model", dst_path=str(tmp_path),
            tracking_uri=demo.stores.mlflow_url,
        )
    )  # fmt: skip
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (kept / file).read_bytes() == (fetched / file).read_bytes()


def test_the_data_set_is_made_of_what_users_of_the_base_model_said(demo: Demo) -> None:
    chain = demo.chain
    manifest = chain.dataset["manifest"]
    assert digest_of_dataset(manifest) == chain.dataset["dataset_id"]
    folder = demo.stores.home / "lifecycle" / NAME / "dataset"
    rows: dict[str, Any] = {}
    for name, facts in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == facts["sha256"]
        rows |= {row["request_id"]: row for row in map(json.loads, content.splitlines())}
    assert rows.keys() == chain.requests.keys()
    for request_id, row in rows.items():
        asked, said = chain.requests[request_id], chain.feedback[row["feedback_id"]]
        assert (asked["model"], asked["status"], asked["adapter"]) == (NAME, "ok", None)
        assert said["request_id"] == request_id and said["key_id"] == asked["key_id"]
        assert row["messages"] == json.loads(asked["request"])["messages"]
        answer = json.loads(asked["response"])["choices"][0]["message"]["content"]
        taught = said["value"] if row["source"] == "demonstration" else answer
        assert row["completion"] == taught


def test_held_out_texts_are_in_no_row(demo: Demo) -> None:
    held_out = {json.loads(line)["messages"][-1]["content"] for line in GOLDEN.open()}
    asked = {json.loads(row["request"])["messages"][-1]["content"]
             for row in demo.chain.requests.values()}  # fmt: skip
    assert len(held_out) >= 200 and not held_out & asked


def test_the_gates_figures_are_those_of_the_answers(demo: Demo) -> None:
    cases = map(json.loads, GOLDEN.open())
    expected = {case["case_id"]: case["expected"] for case in cases}
    folder = demo.stores.home / "lifecycle" / NAME / "evaluation"
    (told,) = [one for one in demo.chain.verdict["metrics"] if one["name"] == "exact_match"]
    assert told["baseline"] == pytest.approx(exact_match(folder / "champion.jsonl", expected))
    assert told["candidate"] == pytest.approx(exact_match(folder / "candidate.jsonl", expected))
    assert demo.chain.verdict["decision"] == "promote" and told["ci_low"] > 0.05
    assert demo.chain.verdict["evidence"]["rollout_seconds"] <= 10


def test_the_decision_rests_on_users_that_are_there(demo: Demo) -> None:
    for trial in demo.stores.rows("SELECT * FROM experiment"):
        verdict = demo.stores.one("SELECT * FROM verdict WHERE verdict_id = ?", trial["verdict_id"])
        told, found = verdict["metrics"][0], heard(demo.stores, trial)
        for arm, mean in (("champion", told["baseline"]), ("challenger", told["candidate"])):
            counted = verdict["evidence"]["users"][arm]
            later = len(found[arm]) - counted  # said while the verdict was being written
            assert later >= 0
            assert abs(sum(found[arm]) - mean * counted) <= later + 1e-6


def test_an_arm_is_answered_by_its_own_adapter_and_a_user_by_one_arm(demo: Demo) -> None:
    for trial in demo.stores.rows("SELECT * FROM experiment"):
        adapters = {arm["variant"]["name"]: arm["variant"]["adapter"] for arm in trial["arms"]}
        arms: dict[str, set[str]] = {}
        for row in demo.stores.log.values():
            if row["experiment"] == trial["experiment_id"]:
                assert row["adapter"] == adapters[row["variant"]]
                arms.setdefault(row["user"], set()).add(row["variant"])
        assert all(len(seen) == 1 for seen in arms.values())
        assert {arm for seen in arms.values() for arm in seen} == set(adapters)


def test_after_the_promotion_the_adapter_answers(demo: Demo) -> None:
    moved = demo.chain.promotion["created_at"]
    later = [row for row in demo.stores.log.values()
             if row["model"] == NAME and _seconds_after(row, moved) > IN_FORCE_SECONDS]  # fmt: skip
    plain = [row for row in later if row["experiment"] is None]
    assert plain and {row["adapter"] for row in plain} == {demo.chain.version["served_name"]}
    assert not [row for row in later if row["adapter"] is None]


def _seconds_after(row: Any, moment: str) -> float:
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    return float((row["ts"] - at).total_seconds())


def test_lineage_leads_from_either_end_to_the_other(demo: Demo, stack: RunningStack) -> None:
    chain = demo.chain
    wanted = {
        chain.promotion["promotion_id"], chain.experiment["experiment_id"],
        chain.version["training_id"], chain.dataset["dataset_id"], chain.verdict["verdict_id"],
    }  # fmt: skip
    first = chain.examples[0]
    for start in (first["feedback_id"], first["request_id"], chain.promotion["promotion_id"]):
        found = json.loads(stack.llmops("lineage", start, "--json"))
        assert wanted <= set(re.findall(r'"id": "([^"]+)"', json.dumps(found)))


def test_the_plain_model_is_itself_beside_an_adapter(demo: Demo, stack: RunningStack) -> None:
    """Requests of both in the engine's batches: no adapter may reach the plain model's rows."""
    questions = [json.loads(line)["messages"] for line in GOLDEN.open()][:12]

    def ask(model: str, messages: list[dict[str, str]]) -> str:
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12}
        request = urllib.request.Request(
            f"{stack.engine_url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])

    plain = ["smollm2-135m-instruct"] * len(questions)
    adapted = [demo.chain.version["served_name"]] * len(questions)
    with ThreadPoolExecutor(len(questions) * 2) as pool:
        alone = list(pool.map(ask, plain, questions))
        mixed = list(pool.map(ask, plain + adapted, questions * 2))
    assert alone != mixed[len(questions) :]
    assert mixed[: len(questions)] == alone


@contextmanager
def copied(stack: RunningStack, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a copy of the home: what is deleted there is deleted nowhere else."""
    home = folder / "home"
    skipped = shutil.ignore_patterns("logs", "models", "mlflow", "redis", "*.sock", "supervisor*")
    shutil.copytree(stack.home, home, ignore=skipped)
    yield {**stack.environ, "LLMOPS_HOME": str(home)}


LINKS: dict[str, Callable[[DerivedChain], tuple[str, Any]]] = {
    "feedback": lambda chain: (
        "DELETE FROM feedback WHERE feedback_id = ?", chain.examples[0]["feedback_id"]),
    "example": lambda chain: (
        "DELETE FROM dataset_example WHERE request_id = ?", chain.examples[0]["request_id"]),
    "data set": lambda chain: (
        "DELETE FROM dataset WHERE dataset_id = ?", chain.dataset["dataset_id"]),
    "training": lambda chain: (
        "DELETE FROM training WHERE training_id = ?", chain.training["training_id"]),
    "gate's verdict": lambda chain: (
        "DELETE FROM verdict WHERE verdict_id = ?", chain.verdict["verdict_id"]),
    "model version": lambda chain: (
        "DELETE FROM model_version WHERE version = ?", chain.version["version"]),
    "experiment": lambda chain: (
        "DELETE FROM experiment WHERE experiment_id = ?", chain.experiment["experiment_id"]),
    "decision": lambda chain: (
        "DELETE FROM verdict WHERE verdict_id = ?", chain.decision["verdict_id"]),
    "promotion": lambda chain: (
        "DELETE FROM promotion WHERE promotion_id = ?", chain.promotion["promotion_id"]),
}  # fmt: skip


def test_a_deleted_link_fails_the_check(demo: Demo, stack: RunningStack, tmp_path: Path) -> None:
    stack.llmops("lineage", "check", NAME)
    with copied(stack, tmp_path) as environ:
        database = Path(environ["LLMOPS_HOME"]) / "state.db"
        whole = tmp_path / "state.db"
        shutil.copyfile(database, whole)
        for link, order in LINKS.items():
            shutil.copyfile(whole, database)
            statement, identifier = order(demo.chain)
            with sqlite3.connect(database) as connection:
                assert connection.execute(statement, (identifier,)).rowcount == 1
            connection.close()
            done = run_llmops("lineage", "check", "--no-data", environ=environ, seconds=60)
            assert done.returncode == 1, (link, done.stdout)
            assert "broken:" in done.stdout, (link, done.stdout)


class Asking:
    """Users who ask again and again, three at once, until the block ends."""

    def __init__(self, stack: RunningStack):
        self.statuses: list[int] = []
        self.adapters: list[tuple[float, str]] = []
        self._stack = stack
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(3)]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 4, "user": f"asking-{number}"}  # fmt: skip
        while not self._ended.wait(0.1):
            began = time.monotonic()
            request = urllib.request.Request(
                f"{self._stack.base_url}/chat/completions",
                json.dumps(body).encode(),
                {"authorization": f"Bearer {self._stack.api_key}",
                 "content-type": "application/json"},
            )  # fmt: skip
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.statuses.append(answer.status)
                    self.adapters.append((began, answer.headers["x-model"]))
            except urllib.error.HTTPError as error:
                self.statuses.append(error.code)


def test_rollback_and_promotion_lose_no_request(demo: Demo, stack: RunningStack) -> None:
    adapter, version = demo.chain.version["served_name"], demo.chain.version["version"]
    with Asking(stack) as asking:
        time.sleep(2)
        began = time.monotonic()
        said = stack.llmops("rollback", NAME, "--reason", "a test's", seconds=30)
        rolled_back = time.monotonic()
        assert "the base model" in said
        time.sleep(4)
        promoting = time.monotonic()
        stack.llmops("promote", NAME, version, "--reason", "a test's", seconds=30)
        promoted = time.monotonic()
        time.sleep(4)
    assert rolled_back - began <= 5
    assert set(asking.statuses) == {200}
    seen = asking.adapters
    assert {model for at, model in seen if at < began} == {f"engine/{adapter}"}
    between = {model for at, model in seen if rolled_back + 1 < at < promoting}
    assert between == {"engine/smollm2-135m-instruct"}
    assert {model for at, model in seen if at > promoted + 1} == {f"engine/{adapter}"}
