"""A small OpenAI-compatible process around LiteLLM, for providers that the gateway cannot ask.

    python -m gateway.litellm_server

`POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `GET /v1/models`,
`GET /health/live`, `GET /health/ready`. Which models there are, and where, is configuration
(`litellm.models`); a request's fields reach LiteLLM only if they are OpenAI's, the others go into
the provider's body. No other file imports LiteLLM.
"""

import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import openai
import orjson

from gateway.configuration import (
    Configuration,
    ConfigurationError,
    Limits,
    LiteLLMProvider,
    load_configuration,
)
from gateway.errors import BadRequest, GatewayError, ModelNotFound
from gateway.json_server import JsonServer, Reply, Request, bound_socket, json_reply, serve
from gateway.settings import Settings, load_settings
from gateway.wire import parse

LOCAL_PRICES = "LITELLM_LOCAL_MODEL_COST_MAP"  # else LiteLLM fetches its price table when imported
TIMEOUT_SECONDS = 600
OPENAI_FIELDS = frozenset(
    {"messages", "prompt", "input", "suffix", "echo", "best_of", "temperature", "top_p", "n"}
    | {"stream", "stream_options", "stop", "max_tokens", "max_completion_tokens", "user", "seed"}
    | {"presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs"}
    | {"response_format", "tools", "tool_choice", "parallel_tool_calls", "functions"}
    | {"function_call", "reasoning_effort", "verbosity", "modalities", "audio", "prediction"}
    | {"service_tier", "web_search_options", "dimensions", "encoding_format"}
)
# LiteLLM keeps its own data under these names, they are no part of the provider's body.
NEVER_FORWARDED = frozenset({"model", "metadata", "cache", "extra_body"})
STREAMS = "/v1/chat/completions"
CALLS = {
    STREAMS: ("acompletion", "messages"),
    "/v1/completions": ("atext_completion", "prompt"),
    "/v1/embeddings": ("aembedding", "input"),
}
log = logging.getLogger(__name__)


class ProviderError(GatewayError):
    """What the provider, or LiteLLM on the way there, answered instead of a result."""

    def __init__(self, error: openai.OpenAIError):
        origin = _origin(error)
        body = getattr(origin, "body", None)
        details: Mapping[str, Any] = body if isinstance(body, dict) else {}
        super().__init__(_message(error, details), param=_text(details.get("param")))
        self.http_status = _status(origin, error)
        self.code = _text(details.get("code"))
        self.type = _text(details.get("type")) or _kind(self.http_status)
        response = getattr(origin, "response", None)
        self.retry_after = response.headers.get("retry-after") if response is not None else None

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": self.retry_after} if self.retry_after else {}


class StreamCut(GatewayError):
    """The provider's stream stopped before its end."""

    http_status = 502
    type = "upstream_error"
    code = "upstream_cut"

    def __init__(self) -> None:
        super().__init__("The provider's stream stopped before its end.")


@dataclass(frozen=True, slots=True)
class Target:
    """One configured model: LiteLLM's name for it, its address and its key."""

    model: str
    api_base: str | None
    api_key: str | None


class LiteLLMServer:
    """The handlers, over the imported library."""

    def __init__(self, library: Any, targets: Mapping[str, Target], limits: Limits) -> None:
        self._library = library
        self._targets = targets
        self._limits = limits
        self._started = int(time.time())

    def application(self) -> JsonServer:
        """The ASGI application. A client that goes away ends the provider's call."""
        calls = {("POST", path): self._handler(path) for path in CALLS}
        return JsonServer(
            {
                **calls,
                ("GET", "/v1/models"): self.list_models,
                ("GET", "/health/live"): self.health,
                ("GET", "/health/ready"): self.health,
            },
            body_bytes=self._limits.body_bytes,
            cancel=True,
        )

    async def list_models(self, _request: Request) -> Reply:
        """GET /v1/models."""
        models = [
            {"id": name, "object": "model", "created": self._started, "owned_by": "litellm"}
            for name in self._targets
        ]
        return json_reply({"object": "list", "data": models})

    async def health(self, _request: Request) -> Reply:
        """The process answers, and LiteLLM is loaded; providers are not asked."""
        return json_reply({"status": "ready", "models": list(self._targets)})

    def _handler(self, path: str) -> Callable[[Request], Awaitable[Reply]]:
        function, required = CALLS[path]

        async def handle(request: Request) -> Reply:
            body = parse(request.body, self._limits)
            target = self._target(body, required)
            if body.get("stream") and path != STREAMS:
                # LiteLLM does not tell the end of a text stream from one that was cut.
                raise BadRequest(f"'stream' is supported on {STREAMS} only.", param="stream")
            call = getattr(self._library, function)
            try:
                answer = await call(**arguments(body, target))
            except openai.OpenAIError as error:
                raise ProviderError(error) from error
            if body.get("stream"):
                return Reply(_events(answer), content_type="text/event-stream")
            return Reply(orjson.dumps(_content(answer)))

        return handle

    def _target(self, body: Mapping[str, Any], required: str) -> Target:
        model = body.get("model")
        if not isinstance(model, str):
            raise BadRequest("'model' is required.", param="model", code="missing_field")
        if body.get(required) is None:
            raise BadRequest(f"'{required}' is required.", param=required, code="missing_field")
        target = self._targets.get(model)
        if target is None:
            raise ModelNotFound(model)
        return target


def arguments(body: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """What LiteLLM is called with: no field of a request can name a host, a key or an option."""
    fields = {name: value for name, value in body.items() if name in OPENAI_FIELDS}
    others = {
        name: value
        for name, value in body.items()
        if name not in OPENAI_FIELDS and name not in NEVER_FORWARDED
    }
    if others:
        fields["extra_body"] = others
    if "messages" in fields:
        fields["_skip_mcp_handler"] = True  # it wants a package of its own, to run tools itself
    return {
        **fields,
        "model": target.model,
        "api_base": target.api_base,
        "api_key": target.api_key,
        "timeout": TIMEOUT_SECONDS,
        "num_retries": 0,
        "max_retries": 0,
    }


async def _events(stream: Any) -> AsyncGenerator[bytes, None]:
    """Server-sent events of a LiteLLM stream; `[DONE]` only if the provider came to its end.

    LiteLLM makes up a finish reason for a stream that just stops, and counts tokens itself where
    the provider gives no usage: neither is passed on. When the client goes away the provider's
    stream is closed.
    """
    try:
        async for chunk in stream:
            content = _content(chunk)
            finished = stream.received_finish_reason or stream.intermittent_finish_reason
            if not finished and _claims_end(content):
                yield _event(StreamCut().body())
                return
            if content.get("usage"):
                if not _provider_counted(stream):
                    continue
                content["choices"] = []
            yield _event(content)
        yield b"data: [DONE]\n\n"
    except openai.OpenAIError as error:
        failure = ProviderError(error)
        yield _event((failure if _origin(error) else StreamCut()).body())
    finally:
        await stream.aclose()


def _claims_end(content: Mapping[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in content.get("choices", ()))


def _provider_counted(stream: Any) -> bool:
    return any(getattr(chunk, "usage", None) for chunk in stream.chunks)


def _content(answer: Any) -> dict[str, Any]:
    content: dict[str, Any] = answer.model_dump(mode="json", exclude_none=True)
    if not (content.get("usage") or {}).get("total_tokens"):
        content.pop("usage", None)  # LiteLLM writes zeros where the provider said nothing
    return content


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _origin(error: openai.OpenAIError) -> BaseException | None:
    """What the HTTP client raised, under LiteLLM's own errors; those may name other statuses."""
    cause: BaseException | None = error
    while cause is not None:
        module, name = type(cause).__module__, type(cause).__name__
        if module == "openai" or name == "HTTPStatusError":
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _status(origin: BaseException | None, error: openai.OpenAIError) -> int:
    if isinstance(origin or error, openai.APITimeoutError):
        return 504
    if isinstance(origin or error, openai.APIConnectionError):
        return 502
    response = getattr(origin, "response", None)
    if response is not None:
        return int(response.status_code)
    status = int(getattr(error, "status_code", None) or 502)
    return 502 if status == 500 else status  # nobody answered 500: it is LiteLLM's for "unknown"


def _kind(status: int) -> str:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return kinds.get(status, "invalid_request_error" if status < 500 else "upstream_error")


def _message(error: openai.OpenAIError, details: Mapping[str, Any]) -> str:
    text = str(details.get("message") or getattr(error, "message", None) or error)
    # LiteLLM's own: "litellm.RateLimitError: RateLimitError: OpenAIException - what was said"
    return text.partition(" - ")[2] or text if text.startswith("litellm.") else text


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def targets(models: Mapping[str, LiteLLMProvider], settings: Settings) -> dict[str, Target]:
    """The configured models with their keys; raises ConfigurationError for a key that is unset."""
    found = {}
    for name, model in models.items():
        api_key = None
        if model.api_key_env:
            api_key = settings.secret_value(model.api_key_env)
            if api_key is None:
                raise ConfigurationError(
                    f"litellm.models.{name}.api_key_env: {model.api_key_env} is not set"
                )
        found[name] = Target(model.model, model.api_base, api_key)
    return found


def load_library() -> Any:
    """Import LiteLLM (seconds, and 100 MB), quiet and without telemetry."""
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def build(configuration: Configuration, settings: Settings) -> LiteLLMServer:
    """Import the library and look up the keys."""
    if configuration.litellm is None:
        raise ConfigurationError("litellm: this section is missing, and is what would be served")
    found = targets(configuration.litellm.models, settings)
    return LiteLLMServer(load_library(), found, configuration.limits)


def main() -> int:
    """Serve as configured until the process is ended."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    settings = load_settings()
    if settings.secret_value(LOCAL_PRICES) is None:
        command = [sys.executable, "-m", "gateway.litellm_server"]
        os.execve(sys.executable, command, {**settings.environ, LOCAL_PRICES: "True"})
    try:
        configuration = load_configuration(settings.config_path)
        if configuration.litellm is None:
            raise ConfigurationError("litellm: this section is missing")
        listener = bound_socket(configuration.litellm.host, configuration.litellm.port)
        server = build(configuration, settings)
    except (ConfigurationError, OSError) as error:
        log.error("litellm server: %s", error)
        return 2
    serve(server.application(), listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
