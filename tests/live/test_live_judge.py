"""A provider's model as a judge, through the gateway: `make test-live`, with a key to pay it by.

OPENAI_API_KEY      the key
LLMOPS_LIVE_URL     another provider's address, up to and with `/v1`
LLMOPS_LIVE_MODEL   the model that judges (gpt-4o-mini)
LLMOPS_LIVE_VECTORS the model that embeds (text-embedding-3-small)
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.golden_cases import golden_path
from evals.records import Decision
from tests.deploy.evaluated_home import EvaluatedHome

KEY = "OPENAI_API_KEY"
URL = os.environ.get("LLMOPS_LIVE_URL", "https://api.openai.com/v1")
MODEL = os.environ.get("LLMOPS_LIVE_MODEL", "gpt-4o-mini")
VECTORS = os.environ.get("LLMOPS_LIVE_VECTORS", "text-embedding-3-small")
RAGAS = "faithfulness,answer_relevancy,context_precision,context_recall,factual_correctness"
JUDGED, ASKED = 54, 5

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("LLMOPS_LIVE" not in os.environ, reason="not run: run make test-live"),
    pytest.mark.skipif(not os.environ.get(KEY), reason=f"not run: {KEY} has no provider's key"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvaluatedHome]:
    """A gateway with the provider behind it."""
    made = EvaluatedHome(tmp_path_factory.mktemp("live") / "made", URL)
    made.gateway.given["upstreams"]["up"]["api_key_env"] = KEY
    price = {"input": 0.02, "output": 0}
    made.gateway.given["models"]["all-MiniLM-L6-v2"] = {
        "upstream": "up", "model": VECTORS, "price": price
    }  # fmt: skip
    made.gateway.write(made.gateway.given)
    made.gateway.start()
    yield made
    made.gateway.stop()


def some(name: str, count: int, folder: Path) -> str:
    lines = golden_path(name).read_bytes().splitlines(keepends=True)
    path = folder / name
    path.write_bytes(b"".join(lines[:: len(lines) // count][:count]))
    return str(path)


@pytest.mark.parametrize("metric", ["judge", "faithfulness"])
def test_a_good_model_is_accepted_as_a_judge(home: EvaluatedHome, tmp_path: Path, metric: str):
    cases = some("judge.jsonl", JUDGED, tmp_path)
    said = home.out("calibrate", "--metric", metric, "--model", MODEL, "--cases", cases)
    print(said)
    assert home.verdicts()[-1].decision is Decision.PROMOTE


def test_every_metric_of_ragas_has_values(home: EvaluatedHome, tmp_path: Path):
    """The model answers the assistant's questions, too."""
    prompt = Path("prompts/library/assistant.yaml").read_text()
    file = tmp_path / "assistant.yaml"
    file.write_text(prompt.replace("model: smollm2-135m-instruct", f"model: {MODEL}"))
    cases = some("assistant.jsonl", ASKED, tmp_path)
    print(home.out("run", str(file), "--cases", cases, "--metrics", RAGAS,
                   "--judge", f"judge@{MODEL}"))  # fmt: skip
    assert all(metric.n == ASKED for metric in home.verdicts()[-1].metrics)
    assert all((metric.candidate or 0) > 0.5 for metric in home.verdicts()[-1].metrics)
