"""How long measuring takes: `python -m pytest tests/evals/test_evaluation_speed.py -s` says it.

The answers are scripted (each the passage that is asked about and a sentence of its own, so that
there is something to ground), what measures them is real: Ragas' string metrics, MiniLM behind the
gateway with its cache, groundedness.
"""

import subprocess
import sys
import time

import pytest

from evals.golden_cases import golden_path, load_golden
from tests.deploy.evaluated_home import EvaluatedHome
from tests.embedding_stack import EmbeddingServerProcess, RedisProcess
from tests.evals.scripted_judge import scripted_judge
from tests.gateway_process import ROOT

METRICS = (
    "exact,contains,refusal,valid_json,latency,cost,output_tokens,bleu,rouge,chrf,"
    "string_similarity,semantic_similarity,groundedness"
)
SECONDS = 30.0
WORDS = 60  # of the passage in an answer


def answer(body):
    passage = body["messages"][-1]["content"].partition("Passage 1: ")[2]
    return " ".join(passage.split()[:WORDS]) + ". That is what the first passage says."


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_cases_are_measured_within_half_a_minute(tmp_path, backstage):
    count = len(load_golden(golden_path("assistant.jsonl")))
    assert count >= 100
    with (
        scripted_judge(backstage, answer) as model,
        RedisProcess(tmp_path) as redis,
        EmbeddingServerProcess(tmp_path, {"redis_url": redis.url}) as vectors,
    ):
        home = EvaluatedHome(tmp_path / "made", model.url)
        home.gateway.given["upstreams"]["vectors"] = {
            "url": f"{vectors.url}/v1", "tell_tenant": True
        }  # fmt: skip
        home.gateway.given["models"]["all-MiniLM-L6-v2"] = {"upstream": "vectors"}
        home.gateway.write(home.gateway.given)
        home.gateway.start()
        try:
            started = time.monotonic()
            command = ["evals", "run", "assistant", "--metrics", METRICS]
            done = subprocess.run(
                [sys.executable, "-m", "deploy.cli", *command],
                cwd=ROOT, env=home.gateway.environ, capture_output=True, text=True, check=False,
            )  # fmt: skip
            whole = time.monotonic() - started
        finally:
            home.gateway.stop()
    assert done.returncode == 0, done.stderr
    (verdict,) = home.verdicts()
    measured = {metric.name: metric.n for metric in verdict.metrics}
    assert set(measured.values()) == {count}, measured
    print(f"\n{count} cases: {verdict.evidence['seconds']} s of measuring, {whole:.1f} s in all")
    assert whole <= SECONDS
