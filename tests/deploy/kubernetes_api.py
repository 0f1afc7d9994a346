"""A stand-in for the Kubernetes API and KServe's controller on a real socket: InferenceServices of
one namespace, server-side apply with owners of fields, the CRD's schema, and a status that follows
as KServe's does. It shows what we send and how we take the answers; it is not a cluster.
"""

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema  # type: ignore[import-untyped]
import orjson

PATH = "/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices/"
SCHEMA = json.loads((Path(__file__).parent / "inference_service_schema.json").read_text())
TOKEN = "a-token-of-the-cluster"

Object = dict[str, Any]


@dataclass
class Cluster:
    """What the API server holds, and how KServe behaves.

    Attributes:
        objects: InferenceServices by name.
        owners: who owns the leaves of each, by name and path.
        patches: bodies that were applied, in their order.
        calls: methods of all calls.
        never_ready: storageUris that do not get ready; failing: those that KServe gives up on.
        looks: how many looks an apply stays unseen, and as many more until it is ready.
        script: answers to come instead: (method, status, message), or (method, "delete", "").
        standard: without revisions (KServe's Standard mode).
        hasty: Ready is True as soon as an apply is seen, as it was of the revision before.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    owners: dict[str, dict[str, str]] = field(default_factory=dict)
    patches: list[Object] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    never_ready: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    looks: int = 1
    script: deque[tuple[str, int | str, str]] = field(default_factory=deque)
    standard: bool = False
    hasty: bool = False
    revisions: dict[str, list[str]] = field(default_factory=dict)
    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, name: str, body: Object, manager: str, force: bool) -> tuple[int, Object]:
        jsonschema.validate(body, SCHEMA)
        leaves, owners = flat(body["spec"]), self.owners.setdefault(name, {})
        theirs = [
            f'conflict with "{owners[path]}" using serving.kserve.io/v1beta1: .spec.{path}'
            for path, value in leaves.items()
            if owners.get(path, manager) != manager
            and value != flat(self.objects[name]["spec"]).get(path)
        ]
        if theirs and not force:
            return 409, _status(409, f"Apply failed with {len(theirs)} conflict: {theirs[0]}")
        self.patches.append(body)
        live = self.objects.get(name)
        kept = {} if live is None else flat(live["spec"])
        ours = {path for path, owner in owners.items() if owner == manager}
        kept = {path: value for path, value in kept.items() if path not in ours} | leaves
        self.owners[name] = {p: o for p, o in owners.items() if o != manager}
        self.owners[name] |= dict.fromkeys(leaves, manager)
        fresh = deepcopy(live) or {**body, "metadata": {**body["metadata"], "generation": 0}}
        before, fresh["spec"] = fresh.get("spec"), nested(kept)
        if live is None or before != fresh["spec"]:
            fresh["metadata"]["generation"] += 1
            self.pending[name] = 2 * self.looks
        self.objects[name] = fresh
        return 200 if live else 201, deepcopy(fresh)

    def look(self, name: str) -> Object | None:
        """The object; KServe's controller works a bit between two looks."""
        live = self.objects.get(name)
        if live is None:
            return None
        left = self.pending.get(name)
        if left is not None:
            if left == self.looks:
                self._take_up(name, live)
            if left <= 0:
                self._finish(name, live)
            self.pending[name] = left - 1
        return deepcopy(live)

    def _take_up(self, name: str, live: Object) -> None:
        status = live.setdefault("status", {})
        uri = live["spec"]["predictor"]["model"]["storageUri"]
        known = self.revisions.setdefault(name, [])
        status["observedGeneration"] = status.get("observedGeneration", 6) + 1  # a child's counter
        status["conditions"] = [{"type": "Ready", "status": "Unknown", "reason": "Deploying"}]
        status["modelStatus"] = {"transitionStatus": "InProgress"}
        if not known or known[-1] != uri:
            known.append(uri)
        if not self.standard:
            created = f"{name}-predictor-{len(known):05}"
            predictor = status.setdefault("components", {}).setdefault("predictor", {})
            predictor["latestCreatedRevision"] = created
        if self.hasty:
            status["conditions"] = [{"type": "Ready", "status": "True"}]
            status["modelStatus"] = {"transitionStatus": "UpToDate"}

    def _finish(self, name: str, live: Object) -> None:
        status, predictor = live["status"], live["spec"]["predictor"]
        uri = predictor["model"]["storageUri"]
        if uri in self.failing:
            status["modelStatus"] = {
                "transitionStatus": "BlockedByFailedLoad",
                "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "MLmodel: not found"},
            }
            return
        if uri in self.never_ready:
            return
        status["conditions"] = [{"type": "Ready", "status": "True"}]
        status["modelStatus"] = {"transitionStatus": "UpToDate"}
        percent = predictor.get("canaryTrafficPercent")
        before = self.traffic.get(name, {})
        whole = [one for one, share in before.items() if share == 100 or one != uri]
        rest = {} if percent is None else {whole[0]: 100 - percent}
        self.traffic[name] = {uri: 100 if percent is None else percent, **rest}
        if not self.standard:
            of = status["components"]["predictor"]
            of["latestReadyRevision"] = of["latestCreatedRevision"]
        jsonschema.validate(live, SCHEMA)


def flat(one: Object, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in one.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def nested(leaves: dict[str, Any]) -> Object:
    found: Object = {}
    for path, value in leaves.items():
        *steps, last = path.split(".")
        place = found
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = value
    return found


def _status(code: int, message: str) -> Object:
    return {"kind": "Status", "status": "Failure", "message": message, "code": code}


class _Handler(BaseHTTPRequestHandler):
    server: "KubernetesAPI"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.cluster.lock:
            self._answer(*self._carry_out())

    do_PATCH = do_GET

    def _carry_out(self) -> tuple[int, Object]:
        cluster, parts = self.server.cluster, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        cluster.calls.append(self.command)
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, _status(401, "Unauthorized")
        if not parts.path.startswith(PATH):
            return 403, _status(403, f"cannot reach {parts.path}")
        name = parts.path.removeprefix(PATH)
        if cluster.script and cluster.script[0][0] == self.command:
            _, what, message = cluster.script.popleft()
            if what == "delete":
                cluster.objects.pop(name, None)
            else:
                return int(what), _status(int(what), message)
        if self.command == "GET":
            live = cluster.look(name)
            missing = _status(404, f'inferenceservices.serving.kserve.io "{name}" not found')
            return (404, missing) if live is None else (200, live)
        if self.headers["content-type"] != "application/apply-patch+yaml":
            return 415, _status(415, "not an apply")
        query = parse_qs(parts.query)
        given = orjson.loads(body)
        try:
            return cluster.apply(name, given, query["fieldManager"][0], query["force"] == ["true"])
        except jsonschema.ValidationError as error:
            return 400, _status(400, f"failed to create typed patch object: {error.message}")

    def _answer(self, status: int, answer: Object) -> None:
        content = orjson.dumps(answer)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


class KubernetesAPI(ThreadingHTTPServer):
    """The server."""

    daemon_threads = True

    def __init__(self, cluster: Cluster):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = cluster

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def kubernetes_api(cluster: Cluster) -> Iterator[KubernetesAPI]:
    """The API, for as long as the block lasts."""
    with KubernetesAPI(cluster) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
