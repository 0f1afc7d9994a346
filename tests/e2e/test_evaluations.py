"""Evaluations on the real stack: the small model answers, and is refused as a judge."""

import json
import urllib.request
from pathlib import Path

from evals.golden_cases import golden_path
from tests.e2e.conftest import RunningStack, run_llmops

METRICS = "contains,refusal,latency,cost,rouge,semantic_similarity,groundedness"
JUDGED, ASKED = 48, 12  # of the golden cases: enough to see it, and quick


def some(name: str, count: int, folder: Path) -> str:
    """Golden cases spread over the whole file."""
    lines = golden_path(name).read_bytes().splitlines(keepends=True)
    path = folder / name
    path.write_bytes(b"".join(lines[:: len(lines) // count][:count]))
    return str(path)


def test_the_small_model_is_refused_as_a_judge(stack: RunningStack, tmp_path: Path):
    cases = some("judge.jsonl", JUDGED, tmp_path)
    calibrate = ("evals", "calibrate", "--model", "smollm2-135m-instruct", "--cases", cases)
    done = run_llmops(*calibrate, environ=stack.environ, seconds=120)
    assert done.returncode == 100, done.stdout + done.stderr
    assert "refused" in done.stdout and f"on {JUDGED} labelled answers" in done.stdout
    # It was a trial on few, and no requirement may rest on it; nothing is asked for that.
    require = ("--judge", "judge@smollm2-135m-instruct", "--require", "judge>=0.5")
    done = run_llmops("evals", "run", "assistant", *require, environ=stack.environ, seconds=60)
    assert done.returncode == 1 and "it was never calibrated" in done.stderr


def test_golden_cases_are_answered_by_the_engine_and_measured(stack: RunningStack, tmp_path: Path):
    cases = some("assistant.jsonl", ASKED, tmp_path)
    said = stack.llmops("evals", "run", "assistant", "--alone", "--cases", cases,
                        "--metrics", METRICS, seconds=120)  # fmt: skip
    assert f"{ASKED} golden cases" in said and "engine/smollm2-135m-instruct" in said
    for metric in METRICS.split(","):
        (line,) = (one for one in said.splitlines() if one.startswith(f"| {metric} "))
        assert f"| {ASKED} | 100 % |" in line
    address = f"{stack.mlflow_url}/api/2.0/mlflow/experiments/get-by-name"
    with urllib.request.urlopen(f"{address}?experiment_name=evaluations", timeout=10) as answer:
        assert json.load(answer)["experiment"]["lifecycle_stage"] == "active"
