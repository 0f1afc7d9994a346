"""The data plane, wired: this factory is the one place where the parts of a worker meet.

The endpoints that carry inference are plain ASGI callables, reached by a look-up. All the rest is a
FastAPI application behind a guard that asks for a key on every path but a short public list.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from gateway.auth import authenticate
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound
from gateway.exchange import Exchange, Receive, Scope, Send
from gateway.feedback import FeedbackStore
from gateway.feedback_routes import feedback_router
from gateway.key_ring import KeyRing
from gateway.live import Live
from gateway.logged_endpoint import Services
from gateway.models import list_models, one_model
from gateway.prediction_forms import INFER, PREDICT
from gateway.prediction_path import PredictionEndpoint
from gateway.prediction_status import PredictionStatus
from gateway.request_lookup import RequestLookup
from gateway.request_path import ENDPOINTS, InferenceEndpoint

PUBLIC = frozenset(("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"))
UNSUPPORTED = (
    "/v1/assistants", "/v1/audio", "/v1/batches", "/v1/files", "/v1/fine_tuning", "/v1/images",
    "/v1/messages", "/v1/moderations", "/v1/realtime", "/v1/responses", "/v1/threads",
    "/v1/uploads", "/v1/vector_stores", "/v1/rerank", "/v1/score",
)  # fmt: skip
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker is made of. `ready` says why it cannot serve now, or None."""

    live: Live
    ring: KeyRing
    services: Services
    feedback: FeedbackStore
    lookup: RequestLookup
    ready: Callable[[], str | None]


class DataPlane:
    """The ASGI application of a worker."""

    def __init__(self, parts: Parts):
        self._ring = parts.ring
        self._hot: dict[str, App] = {
            f"/v1{endpoint.path}": InferenceEndpoint(endpoint, parts.services)
            for endpoint in ENDPOINTS
        }
        self._predictions = (
            PredictionEndpoint(PREDICT, ("/v1/predict/", ""), parts.services),
            PredictionEndpoint(INFER, ("/v2/models/", "/infer"), parts.services),
        )
        self._rest = rest_app(parts)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)  # type: ignore[arg-type]
            return
        path = scope["path"]
        endpoint = self._hot.get(path) or self._prediction(path)
        if endpoint is not None and scope["method"] == "POST":
            await endpoint(scope, receive, send)
            return
        try:
            self._guard(scope)
            if endpoint is not None:
                raise MethodNotAllowed(f"{path} takes POST only.")
        except GatewayError as error:
            await Exchange(scope, receive, send).fail(error)
            return
        await self._rest(scope, receive, send)  # type: ignore[arg-type]

    def _prediction(self, path: str) -> App | None:
        return next((one for one in self._predictions if one.answers(path)), None)

    def _guard(self, scope: Scope) -> None:
        """Ask for a key on every path that is not public; a new route cannot forget it."""
        if scope["path"] not in PUBLIC:
            authorization = dict(scope["headers"]).get(b"authorization")
            scope["llmops.key"] = authenticate(authorization, self._ring)  # type: ignore[index]


def rest_app(parts: Parts) -> FastAPI:
    """Everything that is not inference: models, feedback, look-ups, health, documentation."""
    app = FastAPI(title="LLMOps gateway", openapi_url=None)  # OpenAI's API is documented by OpenAI
    app.state.feedback = parts.feedback
    services = parts.services
    status = PredictionStatus(services.live, services.splits, services.transport)
    app.include_router(feedback_router())
    app.add_exception_handler(GatewayError, _render)
    app.add_exception_handler(HTTPException, _render_http)
    routes = {
        "/v1/models": _models(parts),
        "/v1/models/{name:path}": _model(parts),
        "/v1/requests/{request_id}": _request(parts),
        "/v2/models/{name}": _model_metadata(status),
        "/v2/models/{name}/ready": _model_ready(status),
        "/v2/health/live": _live_v2,
        "/v2/health/ready": _ready_v2(parts),
        "/health/live": _live,
        "/health/ready": _ready(parts),
    }
    for path, endpoint in routes.items():
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    return app


def _models(parts: Parts) -> Callable[..., Any]:
    async def models(request: Request) -> dict[str, Any]:
        """The models that the key may use."""
        routes = parts.live.current.routes
        return await list_models(routes, request.scope["llmops.key"], parts.services.transport)

    return models


def _model(parts: Parts) -> Callable[..., Any]:
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One model that the key may use."""
        routes = parts.live.current.routes
        key = request.scope["llmops.key"]
        return await one_model(name, routes, key, parts.services.transport)

    return model


def _request(parts: Parts) -> Callable[..., Any]:
    async def logged_request(request_id: str, request: Request) -> Response:
        """A request of the key's tenant as the log has it: status, tokens, cost."""
        body = await parts.lookup.find(request_id, request.scope["llmops.key"])
        return Response(body, media_type="application/json")

    return logged_request


def _model_metadata(status: PredictionStatus) -> Callable[..., Any]:
    async def model_metadata(name: str, request: Request) -> Response:
        """Inputs and outputs of a tabular model."""
        body = await status.metadata(name, request.scope["llmops.key"])
        return Response(body, media_type="application/json")

    return model_metadata


def _model_ready(status: PredictionStatus) -> Callable[..., Any]:
    async def model_ready(name: str, request: Request) -> Response:
        """Whether every version of a tabular model that answers is loaded."""
        body = await status.ready(name, request.scope["llmops.key"])
        return Response(body, media_type="application/json")

    return model_ready


async def _live_v2() -> dict[str, bool]:
    """The process answers, as the Open Inference Protocol says it."""
    return {"live": True}


def _ready_v2(parts: Parts) -> Callable[..., Any]:
    async def ready_v2() -> JSONResponse:
        """Whether requests can be served now, as the Open Inference Protocol says it."""
        ready = parts.ready() is None
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    return ready_v2


async def _live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


def _ready(parts: Parts) -> Callable[..., Any]:
    async def ready() -> JSONResponse:
        """Whether requests can be served now, and why not."""
        reason = parts.ready()
        live = parts.live
        body = {
            "status": "ready" if reason is None else "not ready",
            "reason": reason,
            "config_hash": live.current.config_hash,
            "config_error": live.error,
        }
        return JSONResponse(body, 200 if reason is None else 503)

    return ready


async def _render(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return Response(
        error.json(request.scope["path"]),
        error.http_status,
        headers=error.headers,
        media_type="application/json",
    )


async def _render_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404 and path.startswith(UNSUPPORTED):
        return await _render(
            request, NotFound(f"This gateway does not offer {path}.", code="endpoint_not_supported")
        )
    if error.status_code == 404:
        return await _render(request, NotFound(f"There is nothing at {path}."))
    if error.status_code == 405:
        return await _render(request, MethodNotAllowed(f"{path} does not take this method."))
    return await _render(request, BadRequest(str(error.detail)))
