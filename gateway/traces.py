"""Logged requests as OpenTelemetry spans, sent over OTLP/HTTP after their commit.

One span a request, with the GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/
gen-ai/gen-ai-spans/) and our ids and money beside them. The trace id is the request id's 128 bits,
so a request's trace is found without a search. Best effort: a bounded queue, a thread of its own,
and what does not fit or is not taken is dropped and counted; shipping never waits for it.
"""

import hashlib
import logging
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus

from gateway.configuration import Traces
from gateway.log_columns import Row
from gateway.records import Status, usd_text

QUEUE_ROWS = 2000
QUEUE_CHARACTERS = 64 * 1024 * 1024
SEND_ROWS = 100
BODY_CHARACTERS = 256 * 1024
TIMEOUT_SECONDS = 10
EXPERIMENT_HEADER = "x-mlflow-experiment-id"
_OPERATIONS = {
    "chat": "chat", "completions": "text_completion", "embeddings": "embeddings",
    "predict": "predict", "infer": "predict",
}  # fmt: skip
_SPAN_TYPES = {
    "chat": "CHAT_MODEL", "text_completion": "LLM", "embeddings": "EMBEDDING", "predict": "UNKNOWN",
}  # fmt: skip
_SHARE = float(2**64)
_log = logging.getLogger(__name__)

Attributes = dict[str, Any]


class TraceSender:
    """Queues rows and sends them as spans from its own thread."""

    def __init__(self, traces: Traces, endpoint: str):
        self.sent = 0
        self.dropped = 0
        self._traces = traces
        self._endpoint = endpoint
        self._base = endpoint.removesuffix("/v1/traces")
        self._experiment: str | None = None
        self._queue: queue.Queue[Row | None] = queue.Queue(QUEUE_ROWS)
        self._queued = 0
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    @classmethod
    def configured(cls, traces: Traces) -> "TraceSender | None":
        """A sender that is not running yet, or None if no endpoint is configured."""
        return None if traces.endpoint is None else cls(traces, traces.endpoint)

    @classmethod
    def start(cls, traces: Traces) -> "TraceSender | None":
        """A running sender, or None if no endpoint is configured."""
        sender = cls.configured(traces)
        if sender is not None:
            sender._thread.start()
        return sender

    def wants(self, row: Row) -> bool:
        """Whether the row is in the sample and the queue has room."""
        if not sampled(row["request_id"], self._traces.sample):
            return False
        if self._queue.full() or self._queued > QUEUE_CHARACTERS:
            self.dropped += 1
            return False
        return True

    def offer(self, rows: Iterable[Row]) -> None:
        """Queue committed rows; those that do not fit are dropped."""
        for row in rows:
            try:
                self._queue.put_nowait(row)
            except queue.Full:
                self.dropped += 1
            else:
                self._count(_weight(row))

    def forget(self, request_ids: Sequence[str]) -> int:
        """Delete these requests' traces where the endpoint is MLflow's; returns how many.

        Raises OSError if it cannot be reached.
        """
        experiment = self._experiment_id()
        names = [f"tr-{trace_id(name).hex()}" for name in request_ids]
        deleted = 0
        for start in range(0, len(names) if experiment else 0, SEND_ROWS):
            wanted = {"experiment_id": experiment, "request_ids": names[start : start + SEND_ROWS]}
            request = urllib.request.Request(
                f"{self._base}/api/2.0/mlflow/traces/delete-traces",
                data=orjson.dumps(wanted),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                deleted += int(orjson.loads(response.read()).get("traces_deleted", 0))
        return deleted

    def close(self, seconds: float = TIMEOUT_SECONDS) -> None:
        """Send what is queued, for so long at most."""
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        closed = False
        while not closed and (first := self._queue.get()) is not None:
            rows = [first]
            closed = self._drain(rows)
            self._send(rows)
            self._count(-sum(map(_weight, rows)))

    def _drain(self, rows: list[Row]) -> bool:
        """Take what is queued, up to one request's worth; True if that was the end."""
        while len(rows) < SEND_ROWS:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return False
            if item is None:
                return True
            rows.append(item)
        return False

    def _count(self, characters: int) -> None:
        with self._counting:
            self._queued += characters

    def _send(self, rows: list[Row]) -> None:
        spans = [span_of(row, bodies=self._traces.bodies) for row in rows]
        try:
            self._post(_export(spans))
        except OSError as error:
            self.dropped += len(rows)
            _log.warning("%d spans were not taken by %s: %s", len(rows), self._endpoint, error)
            return
        self.sent += len(rows)

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/x-protobuf"}
        experiment = self._experiment_id()
        if experiment:
            headers[EXPERIMENT_HEADER] = experiment
        request = urllib.request.Request(self._endpoint, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            response.read()

    def _experiment_id(self) -> str:
        """Id of the MLflow experiment; empty where the endpoint is not MLflow's."""
        if self._experiment is None:
            try:
                self._experiment = experiment_id(self._base, self._traces.experiment)
            except urllib.error.HTTPError as error:
                if error.code >= 500:
                    raise
                self._experiment = ""
        return self._experiment


def experiment_id(base: str, name: str) -> str:
    """Look up MLflow's experiment `name`, or make it. Raises OSError."""
    api = f"{base}/api/2.0/mlflow/experiments"
    query = urllib.parse.urlencode({"experiment_name": name})
    try:
        with urllib.request.urlopen(
            f"{api}/get-by-name?{query}", timeout=TIMEOUT_SECONDS
        ) as response:
            return str(orjson.loads(response.read())["experiment"]["experiment_id"])
    except urllib.error.HTTPError as error:
        if error.code != 404 or b"RESOURCE_DOES_NOT_EXIST" not in error.read():
            raise
    request = urllib.request.Request(
        f"{api}/create",
        data=orjson.dumps({"name": name}),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return str(orjson.loads(response.read())["experiment_id"])


def sampled(request_id: str, share: float) -> bool:
    """Whether a request is in the sample: the same answer everywhere, by a digest of its id."""
    if share >= 1:
        return True
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * _SHARE


def trace_id(request_id: str) -> bytes:
    """The 128 bits of a request id; of its digest, where it is not a UUID."""
    try:
        return uuid.UUID(request_id).bytes
    except ValueError:
        return hashlib.blake2b(request_id.encode(), digest_size=16).digest()


def _weight(row: Row) -> int:
    return len(row["request"] or "") + len(row["response"] or "")


def span_of(row: Row, *, bodies: bool) -> Span:
    """A row as a span."""
    operation = _OPERATIONS.get(row["endpoint"], "chat")
    started = row["ts"] * 1000
    attributes = _attributes(row, operation)
    if bodies:
        attributes |= _messages(row)
    span = Span(
        trace_id=trace_id(row["request_id"]),
        span_id=hashlib.blake2b(row["request_id"].encode(), digest_size=8).digest(),
        name=f"{operation} {row['model'] or ''}".strip(),
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=started,
        end_time_unix_nano=started + int((row["latency_ms"] or 0) * 1e6),
        attributes=[KeyValue(key=key, value=_value(value)) for key, value in attributes.items()],
    )
    good = row["status"] == Status.OK
    span.status.code = SpanStatus.STATUS_CODE_OK if good else SpanStatus.STATUS_CODE_ERROR
    span.status.message = "" if good else str(row["error_code"] or row["status"])
    return span


def _attributes(row: Row, operation: str) -> Attributes:
    target = row["target"] or ""
    named = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": target.partition("/")[0] or "llmops",
        "gen_ai.request.model": row["model"],
        "gen_ai.response.model": target.partition("/")[2] or None,
        "gen_ai.response.id": row["upstream_id"],
        "gen_ai.usage.input_tokens": row["input_tokens"],
        "gen_ai.usage.output_tokens": row["output_tokens"],
        "gen_ai.usage.cache_read.input_tokens": row["cached_tokens"],
        "gen_ai.conversation.id": row["episode_id"],
        "error.type": None if row["status"] == Status.OK else row["error_code"] or row["status"],
        "http.response.status_code": row["http_status"] or None,
        "user.id": row["user"],
        "mlflow.spanType": orjson.dumps(_SPAN_TYPES[operation]).decode(),
        "llmops.cost_usd": usd_text(row["cost_usd"]),
    }
    if row["finish_reason"]:
        named["gen_ai.response.finish_reasons"] = [row["finish_reason"]]
    for name in ("request_id", "tenant", "team", "key_id", "status", "variant", "experiment",
                 "prompt_name", "prompt_version", "config_hash"):  # fmt: skip
        named[f"llmops.{name}"] = row[name]
    return {name: value for name, value in named.items() if value is not None}


def _messages(row: Row) -> Attributes:
    """Bodies in both shapes: GenAI messages, and MLflow's inputs and outputs as they were."""
    attributes: Attributes = {}
    request, response = _parsed(row.get("request")), _parsed(row.get("response"))
    if request is not None:
        attributes["mlflow.spanInputs"] = orjson.dumps(request).decode()
    if response is not None:
        attributes["mlflow.spanOutputs"] = orjson.dumps(response).decode()
    if isinstance(request, dict):
        inputs = [_message(m) for m in _dicts(request.get("messages"))]
        if not inputs and isinstance(request.get("prompt"), str):
            inputs = [_message({"role": "user", "content": request["prompt"]})]
        if inputs:
            attributes["gen_ai.input.messages"] = orjson.dumps(inputs).decode()
    if isinstance(response, dict):
        outputs = [_answer(choice) for choice in _dicts(response.get("choices"))]
        if outputs:
            attributes["gen_ai.output.messages"] = orjson.dumps(outputs).decode()
    return attributes


def _parsed(body: str | None) -> Any:
    if not body or len(body) > BODY_CHARACTERS:
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _answer(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"role": "assistant", "content": choice.get("text")}
    return {**_message(message), "finish_reason": choice.get("finish_reason") or "error"}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the semantic conventions write it: a role and parts."""
    content = message.get("content")
    parts: list[dict[str, Any]] = []
    if message.get("role") == "tool":
        call = message.get("tool_call_id")
        parts.append({"type": "tool_call_response", "id": call, "response": content})
    elif isinstance(content, str):
        parts.append({"type": "text", "content": content})
    else:
        parts.extend(
            {"type": "text", "content": part["text"]} if "text" in part else part
            for part in _dicts(content)
        )
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function") if isinstance(call.get("function"), dict) else {}
        parts.append({"type": "tool_call", "id": call.get("id"), **(function or {})})
    return {"role": message.get("role") or "user", "parts": parts}


def _export(spans: list[Span]) -> bytes:
    resource = Resource(attributes=[KeyValue(key="service.name", value=_value("llmops-gateway"))])
    scope = ScopeSpans(scope=InstrumentationScope(name="gateway.traces"), spans=spans)
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])]
    )
    return bytes(request.SerializeToString())


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        array = AnyValue()
        array.array_value.values.extend(_value(item) for item in value)
        return array
    return AnyValue(string_value=str(value))
