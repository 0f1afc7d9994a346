"""A stand-in for the Kubeflow Model Registry on a real socket: the part of its REST API, v1alpha3,
that is used here, with its rules (fields, unique names and external ids, 404 where there is none),
and faults on command. It shows what we send and how we take its answers; it is not the registry.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

API = "/api/model_registry/v1alpha3"
BASE = {"name", "externalId", "description", "customProperties", "state"}
FIELDS = {
    "registered_models": BASE | {"owner"},
    "model_versions": BASE | {"registeredModelId", "author"},
    "model-artifact": BASE
    | {"artifactType", "uri", "modelFormatName", "modelFormatVersion", "modelSourceKind"}
    | {"modelSourceClass", "modelSourceId", "modelSourceName"},
    "doc-artifact": BASE | {"artifactType", "uri"},
}
SINGULAR = {"registered_model": "registered_models", "model_version": "model_versions",
            "artifact": "artifacts"}  # fmt: skip


class Refusal(Exception):
    """An answer that is no success."""


@dataclass
class Store:
    """What the registry holds, by kind, and the calls that it got."""

    entities: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {kind: [] for kind in SINGULAR.values()}
    )
    calls: list[tuple[str, str]] = field(default_factory=list)
    script: deque[int | str | float | None] = field(default_factory=deque)
    token: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def models(self) -> list[dict[str, Any]]:
        return self.entities["registered_models"]

    @property
    def versions(self) -> list[dict[str, Any]]:
        return self.entities["model_versions"]

    def artifacts(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.entities["artifacts"] if one["artifactType"] == kind]

    def properties(self, entity: dict[str, Any]) -> dict[str, str]:
        given = entity.get("customProperties", {})
        return {name: value["string_value"] for name, value in given.items()}

    def find(self, kind: str, query: dict[str, str]) -> dict[str, Any]:
        wanted = {"parentResourceId": "registeredModelId"}
        found = [
            one
            for one in self.entities[kind]
            if all(one.get(wanted.get(name, name)) == value for name, value in query.items())
        ]
        if len(found) != 1 or not query:
            raise Refusal(404, f"no {kind} found for {query}")
        return found[0]

    def create(self, kind: str, body: dict[str, Any], parent: str | None) -> dict[str, Any]:
        check(body.get("artifactType", "none") if kind == "artifacts" else kind, body)
        parent = parent or body.get("registeredModelId")
        for one in self.entities[kind]:
            if one.get("externalId") == body.get("externalId") is not None:
                raise Refusal(409, f"external id {body['externalId']} exists already")
            if (one["name"], one.get("parent")) == (body.get("name"), parent):
                raise Refusal(409, f"{kind} with name {body['name']} already exists")
        made = {**body, "id": str(sum(map(len, self.entities.values())) + 1), "parent": parent}
        self.entities[kind].append(made)
        return made


def check(kind: str, body: dict[str, Any]) -> None:
    """400 for what the API's schema does not know."""
    unknown = body.keys() - FIELDS.get(kind, set())
    if unknown or not body.get("name", "x"):
        raise Refusal(400, f"{kind}: json: unknown field {sorted(unknown)}")
    for name, value in body.get("customProperties", {}).items():
        if set(value) != {"metadataType", "string_value"} or not isinstance(
            value["string_value"], str
        ):
            raise Refusal(400, f"customProperties.{name}: {value}")


class _Handler(BaseHTTPRequestHandler):
    server: "ModelRegistryServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_GET

    def _answer(self) -> None:
        store = self.server.store
        length = int(self.headers.get("content-length") or 0)
        body = orjson.loads(self.rfile.read(length)) if length else {}
        with store.lock:
            store.calls.append((self.command, self.path))
            fault = store.script.popleft() if store.script else None
        if isinstance(fault, float):
            time.sleep(fault)
        if fault == "cut":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self._send(fault, {"code": "", "message": "broken on command"})
            return
        try:
            with store.lock:
                status, answer = self._carry_out(body)
        except Refusal as refusal:
            status, message = refusal.args
            answer = {"code": "", "message": message}
        if fault == "cut after":
            self.close_connection = True
            return
        if fault == "no json":
            self._send(200, None)
            return
        self._send(status, answer)

    def _carry_out(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        store, parts = self.server.store, urlsplit(self.path)
        given = self.headers.get("authorization")
        if store.token is not None and given != f"Bearer {store.token}":
            raise Refusal(401, "Unauthorized")
        if not parts.path.startswith(f"{API}/"):
            raise Refusal(404, "page not found")
        steps = parts.path.removeprefix(f"{API}/").split("/")
        if self.command == "GET" and steps[0] in SINGULAR:
            return 200, store.find(SINGULAR[steps[0]], dict(parse_qsl(parts.query)))
        if self.command == "POST":
            parent = steps[1] if len(steps) == 3 else None
            return 201, store.create(steps[-1], body, parent)
        if self.command == "PATCH":
            check(steps[0], body)
            found = store.find(steps[0], {"id": steps[1]})
            found.update(body)
            return 200, found
        raise Refusal(405, f"{self.command} {self.path}")

    def _send(self, status: int, answer: dict[str, Any] | None) -> None:
        content = b"<html>" if answer is None else orjson.dumps(answer)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


class ModelRegistryServer(ThreadingHTTPServer):
    """The server. `store.script` holds faults to come, one for each call: a status, seconds to wait
    (a float), `cut` (no answer, nothing stored), `cut after` (stored, no answer), `no json`, or
    None."""

    daemon_threads = True

    def __init__(self, store: Store, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = store

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def model_registry(store: Store, port: int = 0) -> Iterator[ModelRegistryServer]:
    """The registry, for as long as the block lasts."""
    with ModelRegistryServer(store, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
