"""The official clients, as users have them, on the real stack; then the log of what they did."""

import os
import shutil
import subprocess
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai import NotFoundError, OpenAI

CHAT = "smollm2-135m-instruct"
EMBED = "all-MiniLM-L6-v2"
MODELS = {CHAT, EMBED, "extractor", "flight-delay", "flight-cancellation"}
FRANCE: Any = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def client(stack):
    with OpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0) as openai:
        yield openai


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """Kind of request to its id, as the tests of this module go by."""
    return {}


def asked(client: OpenAI, **fields: Any) -> Any:
    fields = {"temperature": 0, **fields}
    return client.chat.completions.with_raw_response.create(model=CHAT, messages=FRANCE, **fields)


def test_chat_answers_sensibly_and_names_request_target_and_cost(client, seen):
    raw = asked(client, max_tokens=12)
    answer = raw.parse()
    assert "Paris" in answer.choices[0].message.content
    request_id = raw.headers["x-request-id"]
    assert answer.id == f"chatcmpl-{request_id}"
    seen["chat"] = request_id
    assert raw.headers["x-model"] == f"engine/{CHAT}"
    assert Decimal(raw.headers["x-response-cost"]) > 0


def test_streaming_gives_usage_with_the_cost(client, seen):
    stream = client.chat.completions.create(
        model=CHAT,
        messages=FRANCE,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    seen["stream"] = chunks[-1].id.removeprefix("chatcmpl-")
    usage = chunks[-1].usage
    assert usage.completion_tokens > 0 and usage.model_extra["cost"] > 0


def test_choices_logprobs_tools_and_schemas_pass_through(client, seen):
    several = asked(
        client, max_tokens=8, n=2, temperature=0.5, logprobs=True, top_logprobs=2
    ).parse()
    assert len(several.choices) == 2 and several.choices[0].logprobs.content
    tool = asked(
        client,
        max_tokens=60,
        tools=[{"type": "function", "function": {"name": "look_up", "parameters": CITY}}],
        tool_choice={"type": "function", "function": {"name": "look_up"}},
    ).parse()
    assert tool.choices[0].message.tool_calls[0].function.name == "look_up"
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": CITY}}
    structured = asked(client, max_tokens=40, response_format=schema).parse()
    seen["tool"], seen["schema"] = (a.id.removeprefix("chatcmpl-") for a in (tool, structured))
    assert set(orjson.loads(structured.choices[0].message.content)) == {"city"}


def test_completions_and_models(client):
    text = client.completions.create(model=CHAT, prompt="Once upon a time", max_tokens=8)
    assert text.choices[0].text
    assert {model.id for model in client.models.list()} == MODELS
    assert client.models.retrieve(CHAT).id == CHAT


def test_embeddings_come_from_the_cache_the_second_time(client, seen):
    texts = [f"text {time.time_ns()} {index}" for index in range(3)]

    def embed(inputs: list[str]) -> Any:
        return client.embeddings.with_raw_response.create(model=EMBED, input=inputs)

    first = embed(texts)
    time.sleep(0.5)
    again, mixed = embed(texts), embed([texts[0], f"new {time.time_ns()}"])
    states = [answer.headers["x-cache"] for answer in (first, again, mixed)]
    assert states == ["miss", "hit", "partial"]
    seen["embeddings"] = again.headers["x-request-id"]
    one, two = first.parse().data[0].embedding, again.parse().data[0].embedding
    assert len(one) == 384 and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-6
    costs = [Decimal(answer.headers["x-response-cost"]) for answer in (first, again)]
    assert costs[0] > costs[1]


def test_errors_are_the_clients_own(client):
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=FRANCE)
    assert caught.value.code == "model_not_found"


def test_the_log_the_trace_the_costs_and_the_lineage_know_each_request(client, stack):
    raw = asked(client, max_tokens=12, user="ann", metadata={"app": "e2e"})
    request_id, cost = raw.headers["x-request-id"], Decimal(raw.headers["x-response-cost"])
    feedback = client.post(
        "/feedback",
        cast_to=dict[str, Any],
        body={"request_id": raw.parse().id, "metric_name": "helpful", "value": True},
    )
    shown = stack.llmops("logs", "show", request_id)
    for expected in (request_id, CHAT, "Paris", "ann", "ok"):
        assert expected in shown
    lineage = stack.llmops("lineage", feedback["feedback_id"], "--json")
    assert request_id in lineage and f"engine/{CHAT}" in lineage
    stored = client.get(f"/requests/{request_id}", cast_to=dict[str, Any])
    assert Decimal(str(stored["cost_usd"])) == cost
    by_user = stack.llmops("costs", "--by", "user", "--since", "1d")
    assert "ann" in by_user


def test_every_request_of_these_tests_is_in_the_log_and_has_a_trace(client, stack, seen):
    assert {"chat", "stream", "tool", "schema", "embeddings"} <= set(seen)
    for request_id in seen.values():
        assert f"request_id {request_id}" in " ".join(
            stack.llmops("logs", "show", request_id).split()
        )
        assert request_id in stack.llmops("lineage", request_id)
    wanted = {f"tr-{request_id.replace('-', '')}" for request_id in seen.values()}
    assert eventually(lambda: wanted <= traces(stack), seconds=60)


def traces(stack: Any) -> set[str]:
    """Ids of the traces that MLflow shows; each is `tr-` and the request's id."""
    import mlflow

    mlflow.set_tracking_uri(stack.mlflow_url)
    experiments = [found.experiment_id for found in mlflow.search_experiments()]
    found = mlflow.MlflowClient().search_traces(locations=experiments, max_results=500)
    return {trace.info.trace_id for trace in found}


def eventually(check: Any, *, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(1)
    return found


def test_the_official_node_client(stack, tmp_path):
    npm = shutil.which("npm")
    assert npm, "npm is missing; run: apt-get install nodejs npm"
    for name in ("package.json", "client.mjs"):
        shutil.copy(NODE / name, tmp_path)
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, check=True
    )
    environ = {
        **os.environ,
        "OPENAI_BASE_URL": stack.base_url,
        "OPENAI_API_KEY": stack.api_key,
        "CHAT_MODEL": CHAT,
    }
    done = subprocess.run(
        ["node", "client.mjs"], cwd=tmp_path, env=environ, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    seen = orjson.loads(done.stdout)
    assert "Paris" in seen["chat"] and "Paris" in seen["streamed"]
    assert seen["usage"]["cost"] > 0 and Decimal(seen["cost"]) > 0
    assert set(seen["structured"]) == {"city"}
    assert seen["tool"][0]["function"]["name"] == "look_up"
    assert seen["dimensions"] == 384 and seen["cache"] == ["miss", "hit"]
    assert set(seen["models"]) == MODELS
    assert seen["refused"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    for request_id in seen["ids"]:
        assert request_id in stack.llmops("logs", "show", request_id)
