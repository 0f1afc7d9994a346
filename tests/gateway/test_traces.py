"""Spans of logged requests, seen through a real MLflow server and its own client."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
import uuid_utils

from gateway.configuration import Traces
from gateway.log_columns import row_of
from gateway.orders import Order
from gateway.segment import Entry, Kind
from gateway.traces import TraceSender, sampled, span_of, trace_id
from tests.gateway_process import free_port
from tests.spooled_requests import final, record, shipper_of, write_segment

READY_SECONDS = 60
ASKED = {"model": "small", "messages": [{"role": "user", "content": "Capital of France?"}]}
TOLD = {
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris."},
            "finish_reason": "stop",
        }
    ],
}


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=folder)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not answers(f"{url}/health"):
            assert process.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < deadline, (folder / "out").read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def row_for(one: Any, request: Any = ASKED, response: Any = TOLD) -> dict[str, Any]:
    entry = Entry(Kind.FINAL, one.as_dict(), orjson.dumps(request), orjson.dumps(response))
    return row_of(entry, Path("/nowhere"))


def search(url: str, experiment: str) -> list[Any]:
    """What MLflow's client sees of an experiment, in a process of its own."""
    code = (
        "import sys, mlflow, json\n"
        f"mlflow.set_tracking_uri({url!r}); client = mlflow.MlflowClient()\n"
        f"e = client.get_experiment_by_name({experiment!r})\n"
        "traces = client.search_traces(locations=[e.experiment_id], include_spans=True)\n"
        "print(json.dumps([{'info': t.info.to_dict(), 'usage': t.info.token_usage,\n"
        "  'spans': [{'name': s.name, 'type': s.span_type, 'inputs': s.inputs,\n"
        "             'outputs': s.outputs, 'attributes': dict(s.attributes),\n"
        "             'status': str(s.status.status_code)} for s in t.data.spans]}\n"
        "  for t in traces], default=str))"
    )
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "MLFLOW_DISABLE_TELEMETRY": "true"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    found: list[Any] = orjson.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_mlflow_shows_shipped_requests_as_traces(tmp_path: Path, mlflow_url: str) -> None:
    sender = TraceSender.start(
        Traces(endpoint=f"{mlflow_url}/v1/traces", experiment="live gateway")
    )
    assert sender is not None
    good = record(user="anna", episode_id="ep", latency_ms=12.5, finish_reason="stop",
                  cached_tokens=2, cost_nano_usd=1_234_567)  # fmt: skip
    bad = record(status="upstream_error", http_status=502, error_code="upstream_error")
    asked, told = orjson.dumps(ASKED), orjson.dumps(TOLD)
    write_segment(tmp_path / "spool", final(good, asked, told), final(bad, asked, b""))
    assert shipper_of(tmp_path, traces=sender).ship() == 2
    sender.close()
    assert (sender.sent, sender.dropped) == (2, 0)
    traces = {t["info"]["trace_id"]: t for t in search(mlflow_url, "live gateway")}
    assert len(traces) == 2
    hexadecimal = good.request_id.replace("-", "")
    (shown,) = (t for name, t in traces.items() if hexadecimal in name)
    (span,) = shown["spans"]
    assert (span["name"], span["type"]) == ("chat small", "CHAT_MODEL")
    assert span["inputs"] == ASKED
    assert span["outputs"] == TOLD
    assert shown["usage"]["input_tokens"] == 3
    assert shown["usage"]["output_tokens"] == 5
    assert shown["info"]["state"] == "OK"
    attributes = span["attributes"]
    assert attributes["llmops.request_id"] == good.request_id
    assert attributes["llmops.cost_usd"] == "0.001234567"
    assert attributes["gen_ai.provider.name"] == "vllm"
    messages = attributes["gen_ai.output.messages"]
    assert (orjson.loads(messages) if isinstance(messages, str) else messages) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Paris."}],
            "finish_reason": "stop",
        }
    ]
    check_failed(traces, hexadecimal)
    shipper = shipper_of(tmp_path, traces=sender)
    done = shipper.obey(Order("erase", user="anna", before=good.ts))
    assert (done["rows"], done["spans"]) == (1, 1)
    (left,) = search(mlflow_url, "live gateway")
    assert hexadecimal not in left["info"]["trace_id"]


def check_failed(traces: dict[str, Any], hexadecimal: str) -> None:
    (failed,) = (t for name, t in traces.items() if hexadecimal not in name)
    assert failed["info"]["state"] == "ERROR"


def test_a_trace_has_the_requests_own_bits() -> None:
    request_id = str(uuid_utils.uuid7())
    assert trace_id(request_id).hex() == request_id.replace("-", "")
    assert len(trace_id("not a uuid")) == 16
    span = span_of(row_for(record(request_id=request_id)), bodies=True)
    assert span.trace_id == trace_id(request_id)
    assert span.end_time_unix_nano >= span.start_time_unix_nano


def test_without_bodies_no_content_leaves() -> None:
    span = span_of(row_for(record()), bodies=False)
    assert b"France" not in span.SerializeToString()
    assert b"Paris" not in span.SerializeToString()


def test_a_prediction_is_a_span_of_its_own_kind() -> None:
    body = {"predictions": [{"probability": 0.5}]}
    for endpoint in ("predict", "infer"):
        asked = record(endpoint=endpoint, model="flight-delay")
        span = span_of(row_for(asked, {}, body), bodies=True)
        attributes = {one.key: one.value.string_value for one in span.attributes}
        assert span.name == "predict flight-delay"
        assert attributes["mlflow.spanType"] == '"UNKNOWN"'
        assert orjson.loads(attributes["mlflow.spanOutputs"]) == body


def test_odd_bodies_are_no_obstacle() -> None:
    odd: list[Any] = [
        [], "text", 5, None, {"messages": "no list"}, {"messages": [1, {"content": [{"text": 1}]}]},
        {"choices": [{"message": 3}]}, {"messages": [{"role": "tool", "tool_call_id": "c"}]},
        {"choices": [{"text": "t"}]}, {"messages": [{"tool_calls": [{"function": "f"}]}]},
        {"prompt": "say"},
    ]  # fmt: skip
    for body in odd:
        assert span_of(row_for(record(), body, body), bodies=True).name


def test_the_sample_is_a_share_and_the_same_everywhere() -> None:
    names = [str(uuid_utils.uuid7()) for _ in range(4000)]
    chosen = {name for name in names if sampled(name, 0.25)}
    assert 800 < len(chosen) < 1200
    assert chosen == {name for name in names if sampled(name, 0.25)}
    assert chosen <= {name for name in names if sampled(name, 0.5)}
    assert all(sampled(name, 1) for name in names)
    assert not any(sampled(name, 0) for name in names)


def test_an_endpoint_that_is_away_costs_spans_not_shipping(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}/v1/traces"
    sender = TraceSender.start(Traces(endpoint=endpoint))
    write_segment(tmp_path / "spool", *(final(record()) for _ in range(5)))
    started = time.monotonic()
    assert shipper_of(tmp_path, traces=sender).ship() == 5
    assert time.monotonic() - started < 5
    assert sender is not None
    sender.close()
    assert (sender.sent, sender.dropped) == (0, 5)


def test_a_full_queue_drops_and_counts() -> None:
    sender = TraceSender(Traces(endpoint="http://127.0.0.1:9"), "http://127.0.0.1:9")
    rows = [row_for(record())] * 2100
    sender.offer(rows)
    assert sender.dropped == 100
    assert not sender.wants(rows[0])


class Collector(BaseHTTPRequestHandler):
    """Any OTLP endpoint that is not MLflow's."""

    taken: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.taken.append((self.path, self.headers.get_content_type()))
        assert body
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def test_any_otlp_endpoint_will_do() -> None:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        sender = TraceSender.start(
            Traces(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces")
        )
        assert sender is not None
        sender.offer([row_for(record())])
        sender.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert sender.sent == 1
    assert Collector.taken == [("/v1/traces", "application/x-protobuf")]
