"""The model server of tabular models: KServe's, on one machine as in a cluster.

    python -m gateway.tabular_server

The Open Inference Protocol v2 over REST, with the model repository extension:
`POST /v2/repository/models/{version}/load` and `…/unload`, `POST /v2/models/{version}/infer`,
`GET /v2/models/{version}/ready`. Who may call is checked by the gateway; this listens on loopback.
Redis may come and go: only requests whose features it has are refused meanwhile.
"""

import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import orjson
from fastapi import Request, Response
from fastapi.exceptions import FastAPIDeprecationWarning
from fastapi.responses import JSONResponse
from kserve import ModelServer, model_server
from starlette.routing import Route

from gateway.configuration import ConfigurationError, load_configuration
from gateway.errors import BadRequest
from gateway.feature_reads import FeaturesUnavailable, OnlineFeatures
from gateway.feature_schema import SchemaMismatch
from gateway.feature_store import FeatureStoreError, open_feature_store
from gateway.settings import Settings, load_settings
from gateway.version_repository import VersionRepository

THREADS = 2
SWITCH_SECONDS = 0.001
KEY_TTL_SECONDS = 1  # this process reads only
STATUSES = {
    BadRequest: HTTPStatus.BAD_REQUEST,
    SchemaMismatch: HTTPStatus.BAD_REQUEST,
    FeaturesUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
log = logging.getLogger(__name__)


class TabularServer(ModelServer):  # type: ignore[misc]  # kserve's classes are not typed
    """KServe's server on an address of one's own, without gRPC and without a line for each call."""

    def __init__(self, versions: VersionRepository, host: str, port: int):
        super().__init__(
            http_port=port,
            registered_models=versions,
            enable_grpc=False,
            enable_latency_logging=False,
            workers=1,
        )
        self._versions, self._host = versions, host
        for error in STATUSES:
            model_server.app.add_exception_handler(error, _refused)
        # Before KServe's own: that makes and checks every value three times over, and takes longer
        # than features and model together.
        route = Route("/v2/models/{name}/infer", self._infer, methods=["POST"])
        model_server.app.router.routes.insert(0, route)

    async def _infer(self, request: Request) -> Response:
        """A request of the protocol, as JSON."""
        try:
            body = orjson.loads(await request.body())
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"The body is not valid JSON: {error}.") from error
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.")
        name = request.path_params["name"]
        answer, _ = await self.dataplane.infer(name, body, dict(request.headers))
        return Response(orjson.dumps(answer), media_type="application/json")

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host  # KServe's own is every address
        await super()._serve()

    def stop(self, sig: int) -> None:
        """End the server; what is loaded stays noted."""
        self._versions.closing = True
        super().stop(sig)


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    message = error.message if isinstance(error, BadRequest) else str(error)
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    # The error is a text, as the protocol has it; what is beside it, the gateway reads.
    told: dict[str, str | None] = {"error": message}
    if isinstance(error, SchemaMismatch):
        told |= {"param": error.column, "code": BadRequest.code}
    elif isinstance(error, BadRequest):
        told |= {"param": error.param, "code": error.code}
    return JSONResponse(told, status)


def _one_thread_each() -> None:
    """Let one prediction take one core: with few rows more threads only wait for each other."""
    import sklearn.ensemble  # noqa: F401  it loads the library whose threads are limited
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def build(settings: Settings) -> TabularServer:
    """Read the configuration, open the features, load what was loaded before."""
    configured = load_configuration(settings.config_path).model_server
    store = open_feature_store(settings.home, configured.redis_url, key_ttl_seconds=KEY_TTL_SECONDS)
    versions = VersionRepository(
        settings.tabular_dir,
        lambda service: OnlineFeatures(store, service),
        ThreadPoolExecutor(THREADS, "predict", initializer=_one_thread_each),
        settings.home / "run" / f"model-server-{configured.port}.json",
    )
    versions.load_noted()
    return TabularServer(versions, configured.host, configured.port)


def main() -> int:
    """Serve until SIGTERM or SIGINT; 2 and a message if it cannot start."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("kserve", "uvicorn", "uvicorn.access"):  # else KServe sets up a line per request
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).setLevel(logging.WARNING)
    # KServe's choice of response class, told of again with every request.
    warnings.filterwarnings("ignore", category=FastAPIDeprecationWarning)
    sys.setswitchinterval(SWITCH_SECONDS)  # threads compute and look up beside the event loop
    try:
        server = build(load_settings())
    except (ConfigurationError, FeatureStoreError, OSError) as error:
        log.error("model server: %s", error)
        return 2
    server.start([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
