"""A stand-in for the part of Kubeflow Pipelines' API (v2beta1) that a release speaks to."""

import json
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/apis/v2beta1"


@dataclass
class KubeflowServer:
    """Keeps what it is sent.

    Attributes:
        trouble: status that everything is answered with.
        broken: path that is answered with 500.
        uploads: bodies of uploaded versions, by their names.
        tokens: Authorization header of each request.
    """

    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)
    trouble: int | None = None
    broken: str | None = None

    def __enter__(self) -> "KubeflowServer":
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*state.get(*self._asked()))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self._answer(*state.post(*self._asked(), body))

            def _asked(self) -> tuple[str, dict[str, str]]:
                state.tokens.append(self.headers["authorization"])
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                return url.path.removeprefix(API), query

            def _answer(self, status: int, content: Any) -> None:
                if state.trouble or urlsplit(self.path).path == f"{API}{state.broken}":
                    status, content = state.trouble or 500, {"message": "so it was told"}
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def get(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Lists, each with its filter by name."""
        if path == "/healthz":
            return 200, {"multi_user": False}
        if path.endswith("/versions"):
            pipeline = path.split("/")[2]
            mine = [one for one in self.versions if one["pipeline_id"] == pipeline]
            return 200, {"pipeline_versions": named(mine, query)}
        lists = {"pipelines": self.pipelines, "experiments": self.experiments, "runs": self.runs}
        name = path.strip("/")
        return (200, {name: named(lists[name], query)}) if name in lists else (404, {})

    def post(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        """What is made, with a new id."""
        if path == "/pipelines/upload_version":
            made = {"pipeline_id": query["pipelineid"], "display_name": query["name"]}
            self.uploads[query["name"]] = body
            return 200, self._keep(self.versions, made, "pipeline_version_id")
        kinds = {
            "/pipelines": (self.pipelines, "pipeline_id"),
            "/experiments": (self.experiments, "experiment_id"),
            "/runs": (self.runs, "run_id"),
        }
        if path not in kinds:
            return 404, {"message": path}
        kept, key = kinds[path]
        return 200, self._keep(kept, json.loads(body), key)

    @staticmethod
    def _keep(kept: list[dict[str, Any]], made: dict[str, Any], key: str) -> dict[str, Any]:
        kept.append(made | {key: str(uuid.uuid4())})
        return kept[-1]


def named(kept: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    """Those with the name that the filter asks for."""
    (predicate,) = json.loads(query["filter"])["predicates"]
    assert predicate["operation"] in ("EQUALS", 1) and predicate["key"] == "display_name"
    value = predicate.get("stringValue") or predicate["string_value"]
    return [one for one in kept if one["display_name"] == value]
