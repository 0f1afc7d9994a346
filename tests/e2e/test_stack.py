"""The stack as a newcomer meets it: the printed line works, restarts happen, the model is sound."""

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.request

from deploy.keeper import Keeper
from tests.e2e.conftest import RunningStack

PARTS = (
    "redis", "mlflow", "engine", "embeddings", "admin", "gateway", "shipper", "controller",
    "schedule", "kserve",
)  # fmt: skip


def test_the_printed_line_works_as_it_is(stack: RunningStack):
    line = next(line for line in stack.output.splitlines() if line.startswith("curl "))
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    # Whether the full stop comes is a near tie that the batch's shape decides.
    assert answer["choices"][0]["message"]["content"].startswith("The capital of France is Paris")


def test_every_part_was_shown_and_is_healthy(stack: RunningStack):
    for part in PARTS:
        ready = [line for line in stack.output.splitlines() if line.startswith(f"{part} ")]
        assert any(" ready " in line for line in ready), part
    shown = stack.llmops("status")
    assert shown.count("healthy") == len(PARTS)


def test_a_second_up_changes_nothing(stack: RunningStack):
    from tests.e2e.conftest import run_llmops

    done = run_llmops("up", "--config", str(stack.config_path), environ=stack.environ, seconds=60)
    assert done.returncode == 1
    assert "is up already" in done.stdout
    assert stack.llmops("status").count("healthy") == len(PARTS)


def test_logs_of_a_part(stack: RunningStack):
    # However many requests it has logged since.
    assert "Application startup complete" in stack.llmops("logs-of", "engine", "-n", "100000")


def test_a_killed_gateway_worker_comes_back(stack: RunningStack):
    keeper = Keeper(stack.home)
    before = next(state.pid for state in keeper.states() if state.part == "gateway")
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not _ready(stack.base_url.removesuffix("/v1") + "/health/ready"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert next(state.pid for state in keeper.states() if state.part == "gateway") != before


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
