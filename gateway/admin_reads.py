"""What the admin API reads: metrics of all workers, the request log, costs and lineage."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.settings import Settings


def reads_router() -> APIRouter:
    """The table of routes."""
    router = APIRouter()
    router.add_api_route("/metrics", metrics, methods=["GET"])
    return router


def metrics(request: Request) -> Response:
    """The sum of the workers' metrics, in Prometheus's text format."""
    settings: Settings = request.app.state.settings
    settings.metrics_dir.mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(settings.metrics_dir))  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
