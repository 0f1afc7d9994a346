"""What the admin API reads: metrics of all workers, the request log, costs and lineage."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from gateway.costs import BadSince, UnknownDimension, costs, since_time, total
from gateway.errors import BadRequest, NotFound
from gateway.lineage import lineage
from gateway.lineage_links import GatewayLinks
from gateway.request_log import LogReader, presented
from gateway.settings import Settings

JSON = "application/json"
SHIPPER_STATUS = "shipper.json"


def reads_router() -> APIRouter:
    """The table of routes."""
    router = APIRouter()
    for path, handler in (
        ("/metrics", metrics),
        ("/costs", show_costs),
        ("/logs/{identifier:path}", show_request),
        ("/lineage/{identifier:path}", show_lineage),
    ):
        router.add_api_route(path, handler, methods=["GET"], response_class=Response)
    return router


def metrics(request: Request) -> Response:
    """The sum of the workers' metrics, in Prometheus's text format."""
    settings: Settings = request.app.state.settings
    settings.metrics_dir.mkdir(parents=True, exist_ok=True)
    for file in settings.metrics_dir.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():  # killed: its requests under way are no more
            mark_process_dead(pid, path=str(settings.metrics_dir))  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(settings.metrics_dir))  # type: ignore[no-untyped-call]
    registry.register(ShipperCollector(settings.home / "run" / SHIPPER_STATUS))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class ShipperCollector(Collector):
    """What the shipper counted since its start, from the file that it keeps."""

    def __init__(self, status: Path):
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One gauge for each count; none while there is no shipper."""
        try:
            counts = orjson.loads(self._status.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return
        for name, value in counts.items():
            if isinstance(value, int):
                about = f"The log shipper since its start: {name.replace('_', ' ')}."
                yield GaugeMetricFamily(f"llmops_shipper_{name}", about, value=value)


def show_request(identifier: str, request: Request) -> Response:
    """One request of the log with its bodies, by its id or the upstream's."""
    reader: LogReader = request.app.state.reader
    row = reader.row(identifier)
    if row is None:
        raise NotFound(f"there is no request {identifier[:256]!r} in the log", param="id")
    return Response(orjson.dumps(presented(row)), media_type=JSON)


def show_costs(
    request: Request,
    by: Annotated[str, Query(max_length=32)] = "model",
    since: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Tokens and money by model, team, key, prompt, user, …; `since` such as `7d` or a date."""
    try:
        start = since_time(since) if since is not None else None
        lines = costs(request.app.state.reader, by=by, since=start)
    except BadSince as error:
        raise BadRequest(f"since: {error}", param="since") from error
    except UnknownDimension as error:
        raise BadRequest(f"by: {error}", param="by") from error
    body = {"by": by, "lines": [asdict(line) for line in lines], "total": asdict(total(lines))}
    return Response(orjson.dumps(body, default=str), media_type=JSON)


def show_lineage(identifier: str, request: Request) -> Response:
    """What a thing was made with and what came of it, by any id."""
    state = request.app.state
    found = lineage(identifier, [GatewayLinks(state.database, state.reader)])
    return Response(orjson.dumps(found.as_dict()), media_type=JSON)
