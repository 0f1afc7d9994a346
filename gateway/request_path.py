"""The request path: one inference request from its arrival to its row in the log.

    authenticate → read → parse → prompt → validate → route → intend
    → ask → (reply | relay) → settle

Each stage is one call in `InferenceEndpoint.serve`. Whatever happens on the way, the request is
settled once (`gateway.logged_endpoint`): its usage is priced, its record is in the spool, its
metrics are counted. A client that goes away cancels the task of its own request; the record is
written all the same, because writing it never waits.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway import wire
from gateway.errors import BadRequest, UpstreamBroken
from gateway.exchange import Disconnected, HeaderList
from gateway.inference import Inference
from gateway.live_prompts import PromptRequest, Resolved, prompt_request, prompted
from gateway.logged_endpoint import LoggedEndpoint, Services
from gateway.records import Status, usd_text
from gateway.relay import Relay
from gateway.routing import Target, cache_salt
from gateway.stream import finish_reason_of
from gateway.upstream import Answer, Call, refusal
from gateway.usage import read_usage
from gateway.variants import PROMPT_SPLIT, unit_of

CACHE_STATES = frozenset(("hit", "partial", "miss"))
# Of the embedding server: hits and texts, and how many texts were longer than its model reads.
PASSED_HEADERS = ("x-cache-items", "x-truncated-items")
COUNTS = re.compile(r"[0-9]{1,9}(/[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of OpenAI's endpoints: its path under `/v1`, and the table of its body's fields."""

    name: str
    path: str
    checks: Mapping[str, wire.Check]
    required: tuple[str, ...]
    streams: bool = True


ENDPOINTS = (
    Endpoint("chat", "/chat/completions", wire.CHAT, ("model", "messages")),
    Endpoint("completions", "/completions", wire.COMPLETION, ("model", "prompt")),
    Endpoint("embeddings", "/embeddings", wire.EMBEDDING, ("model", "input"), streams=False),
)


class InferenceEndpoint(LoggedEndpoint):
    """One of OpenAI's endpoints as an ASGI callable."""

    def __init__(self, endpoint: Endpoint, services: Services):
        super().__init__(endpoint.name, services)
        self.endpoint = endpoint

    async def serve(self, work: Inference) -> None:
        """The path, top to bottom."""
        self._admit(work)
        self._authenticate(work)
        await self._read(work)
        await self._parse(work)
        await self._prompt(work)
        self._validate(work)
        self._route(work)
        call = self._intend(work)
        answer = await self._ask(work, call)
        try:
            if call.stream:
                await Relay(work, answer, self.services.ledger).run()
            else:
                await self._reply(work, answer)
        finally:
            answer.close()

    async def _prompt(self, work: Inference) -> None:
        """Put the prompt that the request names into its body, and into what is logged of it."""
        assert work.body is not None
        asked = prompt_request(work.body)
        if asked is None:
            return
        started = time.perf_counter()
        if self.endpoint.name != "chat":
            raise BadRequest("'prompt_id' is for chat completions.", param="prompt_id")
        record, resolved = work.record, self._pick_prompt(work, asked)
        record.prompt_name, record.prompt_version = resolved.prompt.name, resolved.version
        record.prompt_sha = resolved.prompt.content_hash
        work.body = await prompted(work.body, asked, resolved)
        logged = {name: value for name, value in work.body.items() if name != "prompt_variables"}
        work.raw, work.variables = orjson.dumps(logged), asked.variables
        work.spend(started)

    def _pick_prompt(self, work: Inference, asked: PromptRequest) -> Resolved:
        """The version that is asked for, or the one that an experiment gives to this unit."""
        prompts = self.services.prompts
        split = self.services.splits.current.get(PROMPT_SPLIT + asked.name)
        if split is None or split.experiment_id is None or not asked.follows_production:
            return prompts.resolve(asked)
        assert work.key is not None and work.body is not None
        user, episode = (_short(work.body.get(name)) for name in ("user", "episode_id"))
        record = work.record  # who asks is logged now: a refused rendering is this arm's doing
        record.user, record.episode_id = user or record.user, episode
        unit = unit_of(record.user, record.episode_id, work.key.key_id)
        variant = split.choose(work.key.tenant, unit)
        resolved = prompts.resolve(asked, variant.prompt_version)
        record.variant, record.experiment = variant.name, split.experiment_id
        return resolved

    def _validate(self, work: Inference) -> None:
        started = time.perf_counter()
        body, limits = work.body, work.snapshot.configuration.limits
        assert body is not None
        for name in self.endpoint.required:
            if name not in body:
                raise BadRequest(f"'{name}' is missing.", param=name, code="missing_field")
        assert work.key is not None
        strict = work.key.unknown_fields == "reject"
        wire.validate(body, self.endpoint.checks, limits, strict=strict)
        _describe(work, body)
        work.spend(started)

    def _route(self, work: Inference) -> None:
        started = time.perf_counter()
        assert work.key is not None and work.body is not None
        asked = work.body["model"]
        target = work.target = work.snapshot.routes.resolve(asked, work.key)
        split = self.services.splits.current.get(asked)
        # Of an embedding's request a variant can only be who answers it.
        if split is not None and (self.endpoint.streams or split.retargets):
            target = self._vary(work, target, split)
        if target.upstream.kind == "kserve":
            raise BadRequest(
                f"{asked!r} is a tabular model: ask it at POST /v1/predict/{asked}.",
                param="model",
                code="tabular_model",
            )
        work.record.target = target.name
        work.spend(started)

    def _intend(self, work: Inference) -> Call:
        """Write the intent, then be ready for a client that goes away."""
        if work.exchange.connection.closed:  # it left while the body was parsed
            raise Disconnected
        started = time.perf_counter()
        assert work.target is not None
        call = self._call(work, work.target)
        self._begin(work)
        work.spend(started)
        return call

    def _call(self, work: Inference, target: Target) -> Call:
        assert work.body is not None and work.key is not None
        upstream = target.upstream
        stream = self.endpoint.streams and bool(work.body.get("stream"))
        body = wire.upstream_body(work.body, target.model)
        if work.variant is not None:
            body = wire.overlaid(body, work.variant.parameters)
        headers = {"content-type": "application/json"}
        if stream and upstream.stream_usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if target.settings.max_output_tokens is not None and self.endpoint.streams:
            wire.cap_output(body, target.settings.max_output_tokens)
        if upstream.engine == "vllm":
            body["request_id"] = work.record.request_id
            body["cache_salt"] = cache_salt(self.services.salt_secret, work.key.tenant)
        if upstream.tell_tenant:
            headers["x-llmops-tenant"] = work.key.tenant
            if "cache" in work.body:
                body["cache"] = work.body["cache"]
        if target.credential:
            headers["authorization"] = f"Bearer {target.credential}"
        work.record.stream = stream
        url = upstream.url.rstrip("/") + self.endpoint.path
        return Call(
            url, headers, orjson.dumps(body), upstream.timeouts, stream, upstream.connections
        )

    async def _ask(self, work: Inference, call: Call) -> Answer:
        answer = await self.services.transport.send(call)
        if not 200 <= answer.status < 300:
            try:
                raise refusal(answer.status, answer.headers, await answer.read())
            finally:
                answer.close()
        if call.stream and "event-stream" not in answer.headers.get("content-type", ""):
            answer.close()
            raise UpstreamBroken("The upstream answered a stream's request without a stream.")
        return answer

    async def _reply(self, work: Inference, answer: Answer) -> None:
        """A whole answer: priced and logged, then sent as it came."""
        data = await answer.read()
        answered = time.perf_counter()
        parsed = _parse_answer(data)
        record = work.record
        record.upstream_id = _text(parsed.get("id"))
        record.finish_reason = finish_reason_of(parsed)
        cache = answer.headers.get("x-cache")
        record.cache = cache if cache in CACHE_STATES else None
        record.ttft_ms = work.elapsed_ms()
        ledger = self.services.ledger
        usage = read_usage(parsed.get("usage")) or await ledger.estimate(work, data)
        ledger.price(work, usage)
        work.spend(answered)
        ledger.settle(work, Status.OK, 200, data)
        await ledger.durable()
        headers = work.headers()
        headers.append((b"x-response-cost", usd_text(record.cost_nano_usd).encode()))
        if record.cache is not None:
            headers += _passed(answer.headers)
        await work.exchange.answer(200, headers, data)


def _describe(work: Inference, body: Mapping[str, Any]) -> None:
    """Take into the record what the caller said of its request."""
    record = work.record
    record.model = body["model"]
    record.user = body.get("user") or record.user
    record.episode_id = body.get("episode_id")
    record.tags = dict(body.get("metadata") or {})
    contexts = {n: body[n] for n in ("retrieved_contexts", "reference") if body.get(n) is not None}
    if work.variables is not None:
        contexts["variables"] = work.variables
    record.contexts = contexts or None
    work.tag_client_id()


def _parse_answer(data: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamBroken("The upstream's answer is not JSON.") from error
    if not isinstance(parsed, dict):
        raise UpstreamBroken("The upstream's answer is not a JSON object.")
    return parsed


def _passed(headers: Mapping[str, str]) -> HeaderList:
    found = [(name, headers.get(name, "")) for name in PASSED_HEADERS]
    return [(n.encode(), v.encode()) for n, v in found if COUNTS.fullmatch(v)]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _short(value: Any) -> str | None:
    """As much of it as a name may have; with more the request is refused later."""
    return value[: wire.TEXT_BYTES] if isinstance(value, str) else None
