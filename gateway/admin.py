"""The admin process: keys, teams, audit trail, request log, costs, lineage and metrics on one port.

It has a credential of its own and never serves the data plane's keys. Every answer that is not a
result has OpenAI's error shape.
"""

import logging

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from gateway.admin_guard import AdminGuard
from gateway.admin_reads import reads_router
from gateway.admin_routes import admin_router
from gateway.configuration import Configuration, load_configuration
from gateway.database import Database, open_database
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, Unavailable
from gateway.keys import KeyStore
from gateway.request_log import LogReader, LogUnavailable
from gateway.settings import Settings, load_settings

HTTP_NOT_FOUND, HTTP_METHOD_NOT_ALLOWED = 404, 405


def create_admin(settings: Settings, configuration: Configuration) -> FastAPI:
    """The whole application, with its guard; the database is opened when it is first used."""
    app = FastAPI(title="llmops admin", docs_url=None, redoc_url=None)
    database = open_database(settings.database_url)
    app.state.database = database
    app.state.settings = settings
    app.state.configuration = configuration
    app.state.keys = KeyStore(database, settings.key_digest_secret())
    app.state.reader = LogReader.open(settings, configuration.log)
    app.add_middleware(AdminGuard, credential=settings.admin_credential())
    app.add_exception_handler(GatewayError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _from_http)
    app.add_exception_handler(SQLAlchemyError, _away)
    app.add_exception_handler(LogUnavailable, _unread)
    app.add_exception_handler(Exception, _broken)
    app.add_api_route("/health/live", live, methods=["GET"])
    app.add_api_route("/health/ready", ready, methods=["GET"])
    app.include_router(admin_router())
    app.include_router(reads_router())
    return app


def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


def ready(request: Request) -> dict[str, str]:
    """The state database answers too, and is set up."""
    database: Database = request.app.state.database
    try:
        with database.session() as session:
            session.execute(text("SELECT version FROM state_version"))
    except SQLAlchemyError as error:
        raise Unavailable("The state database is away, or was not set up.") from error
    return {"status": "ok"}


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return JSONResponse(error.body(), error.http_status, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or None
    message = first["msg"].removeprefix("Value error, ")
    return await _refused(request, BadRequest(f"{where or 'body'}: {message}", param=where))


async def _from_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == HTTP_NOT_FOUND:
        return await _refused(request, NotFound(f"there is no {path!r} here"))
    if error.status_code == HTTP_METHOD_NOT_ALLOWED:
        return await _refused(request, MethodNotAllowed(f"{path!r} does not take {method}"))
    return await _refused(request, BadRequest(str(error.detail)))


async def _away(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("the state database failed: %s", error)
    return await _refused(request, Unavailable("The state database is away; try again."))


async def _unread(request: Request, error: Exception) -> Response:
    return await _refused(request, Unavailable(f"The request log cannot be read: {error}"))


async def _broken(request: Request, _error: Exception) -> Response:
    # The server logs the traceback; the caller learns nothing of it.
    return await _refused(request, GatewayError("The admin process failed; its log says why."))


def main() -> None:
    """Serve until SIGTERM."""
    settings = load_settings()
    configuration = load_configuration(settings.config_path)
    where = configuration.admin
    app = create_admin(settings, configuration)
    uvicorn.run(app, host=where.host, port=where.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
