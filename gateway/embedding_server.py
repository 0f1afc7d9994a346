"""The embedding server: an OpenAI-compatible process that holds Feast and the models.

    python -m gateway.embedding_server

`POST /v1/embeddings`, `GET /v1/models`, `GET /health/live`, `GET /health/ready`, `GET /metrics`.
The caller's tenant is the header `x-llmops-tenant`, which the gateway sets. Nothing listens until
the models are loaded. Redis may come and go: `/health/ready` tells, and stays 200.
"""

import base64
import logging
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson

from gateway.configuration import (
    Configuration,
    ConfigurationError,
    Limits,
    load_configuration,
)
from gateway.embedding_cache import EmbeddingCache
from gateway.embedding_configuration import EmbeddingModel
from gateway.embedding_request import EmbeddingRequest, parse_request
from gateway.embedding_service import Embedder, EmbeddingService, Found
from gateway.embedding_upstream import UpstreamModel
from gateway.feature_store import FeatureStoreError, open_feature_store
from gateway.json_server import JsonServer, Reply, Request, bound_socket, json_reply, serve
from gateway.settings import Settings, load_settings

TENANT_HEADER = "x-llmops-tenant"
DEFAULT_TENANT = "default"
SWITCH_SECONDS = 0.001

log = logging.getLogger(__name__)


class EmbeddingServer:
    """The handlers, over one service and its cache."""

    def __init__(self, service: EmbeddingService, cache: EmbeddingCache, limits: Limits) -> None:
        self.service = service
        self.cache = cache
        self.limits = limits
        self.started = int(time.time())

    def application(self) -> JsonServer:
        """The ASGI application."""
        return JsonServer(
            {
                ("POST", "/v1/embeddings"): self.embeddings,
                ("GET", "/v1/models"): self.list_models,
                ("GET", "/health/live"): self.live,
                ("GET", "/health/ready"): self.ready,
                ("GET", "/metrics"): self.metrics,
            },
            body_bytes=self.limits.body_bytes,
            start=self._start,
            stop=self.service.close,
        )

    async def embeddings(self, request: Request) -> Reply:
        """POST /v1/embeddings."""
        wanted = parse_request(request.body, self.limits)
        tenant = request.header(TENANT_HEADER, DEFAULT_TENANT)
        found = await self.service.answer(wanted, tenant)
        return _reply(wanted, found)

    async def list_models(self, _request: Request) -> Reply:
        """GET /v1/models."""
        models = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "llmops"}
            for name in self.service.models
        ]
        return json_reply({"object": "list", "data": models})

    async def live(self, _request: Request) -> Reply:
        """GET /health/live: the process answers."""
        return json_reply({"status": "live"})

    async def ready(self, _request: Request) -> Reply:
        """GET /health/ready: embeddings can be answered, with the cache or without."""
        cache = "away" if self.cache.away else "up"
        return json_reply({"status": "ready", "cache": cache, "models": list(self.service.models)})

    async def metrics(self, _request: Request) -> Reply:
        """GET /metrics, in Prometheus' text format."""
        counted = {**asdict(self.service.counts), **asdict(self.cache.counts)}
        lines = []
        for name, value in counted.items():
            lines += [f"# TYPE llmops_embedding_{name}_total counter"]
            lines += [f"llmops_embedding_{name}_total {value}"]
        for name, value in (("queued", self.cache.queued), ("cache_away", int(self.cache.away))):
            lines += [f"# TYPE llmops_embedding_{name} gauge", f"llmops_embedding_{name} {value}"]
        text = "\n".join([*lines, ""]).encode()
        return Reply(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    async def _start(self) -> None:
        self.cache.start()


def _reply(request: EmbeddingRequest, found: list[Found]) -> Reply:
    tokens = sum(item.embedding.tokens for item in found)
    cached_tokens = sum(item.embedding.tokens for item in found if item.cached)
    hits = sum(item.cached for item in found)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _shown(item, request)}
            for index, item in enumerate(found)
        ],
        "model": request.model,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        },
    }
    headers = {
        "x-cache": "hit" if hits == len(found) else "partial" if hits else "miss",
        "x-cache-items": f"{hits}/{len(found)}",
    }
    truncated = sum(item.embedding.truncated for item in found)
    if truncated:
        headers["x-truncated-items"] = f"{truncated}/{len(found)}"
    return Reply(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers)


def _shown(item: Found, request: EmbeddingRequest) -> Any:
    vector = item.embedding.vector
    if request.encoding == "base64":
        return base64.b64encode(vector).decode()
    return np.frombuffer(vector, "<f4")


def open_model(name: str, configured: EmbeddingModel, settings: Settings) -> Embedder:
    """The model of one entry of `embeddings.models`; raises ConfigurationError."""
    where = f"embeddings.models.{name}"
    if configured.source == "upstream":
        if not configured.url:
            raise ConfigurationError(f"{where}.url: a model of source 'upstream' needs it")
        api_key = None
        if configured.api_key_env:
            api_key = settings.secret_value(configured.api_key_env)
            if api_key is None:
                raise ConfigurationError(f"{where}.api_key_env: {configured.api_key_env} is unset")
        return UpstreamModel(
            url=configured.url,
            model=configured.model or name,
            api_key=api_key,
            dimensions=configured.dimensions,
        )
    from gateway.embedding_local import LocalModel, packaged_model  # torch: only if it is wanted

    model = LocalModel(configured.path or packaged_model(settings.home / "models"))
    if model.dimensions != configured.dimensions:
        raise ConfigurationError(
            f"{where}.dimensions: {configured.dimensions}, but the model has {model.dimensions}"
        )
    return model


def build(configuration: Configuration, settings: Settings) -> EmbeddingServer:
    """Load the models and open the store; takes seconds. Redis need not be there."""
    embeddings = configuration.embeddings
    if embeddings is None:
        raise ConfigurationError("embeddings: this section is missing, and is what would be served")
    store = open_feature_store(
        settings.home, embeddings.redis_url, key_ttl_seconds=embeddings.ttl_seconds
    )
    cache = EmbeddingCache(store)
    models = {name: open_model(name, model, settings) for name, model in embeddings.models.items()}
    service = EmbeddingService(models, cache, ttl_seconds=embeddings.ttl_seconds)
    return EmbeddingServer(service, cache, configuration.limits)


def main() -> int:
    """Serve as configured until the process is ended."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)  # threads compute and look up beside the event loop
    settings = load_settings()
    try:
        configuration = load_configuration(settings.config_path)
        if configuration.embeddings is None:
            raise ConfigurationError("embeddings: this section is missing")
        listener = bound_socket(configuration.embeddings.host, configuration.embeddings.port)
        server = build(configuration, settings)
    except (ConfigurationError, FeatureStoreError, OSError) as error:
        log.error("embedding server: %s", error)
        return 2
    serve(server.application(), listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
