"""A stand-in for a lakeFS server, over a real socket: what snapshots need of its API.

Requests and answers are held against the models of lakeFS' own client (`lakefs_sdk`); branches,
commits, tags and merges are kept in memory. It is not lakeFS: what it shows is that our side of the
contract holds.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import lakefs_sdk

KEY, SECRET = "AKIAKEY", "secret"
REPOSITORY = "flights"
API = f"/api/v1/repositories/{REPOSITORY}"
ROUTES = (
    ("POST", r"/branches", "create_branch"),
    ("POST", r"/branches/([^/]+)/objects", "upload"),
    ("POST", r"/branches/([^/]+)/commits", "commit"),
    ("GET", r"/commits/([^/]+)", "get_commit"),
    ("POST", r"/tags", "create_tag"),
    ("GET", r"/tags", "list_tags"),
    ("GET", r"/refs/([^/]+)/objects/ls", "list_objects"),
    ("GET", r"/refs/([^/]+)/objects", "get_object"),
    ("GET", r"/refs/([^/]+)/diff/([^/]+)", "diff"),
    ("POST", r"/refs/([^/]+)/merge/([^/]+)", "merge"),
)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str):
        self.status, self.message = status, message


@dataclass
class Kept:
    """A repository in memory. A commit is its files, its message, its metadata."""

    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    staged: dict[str, dict[str, bytes]] = field(default_factory=dict)
    page: int = 2

    def __post_init__(self) -> None:
        self.branches["main"] = self.new_commit({}, [], "Repository created", {})

    def new_commit(self, files: Any, parents: list[str], message: str, metadata: Any) -> str:
        digest = hashlib.sha256(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[digest] = {
            "files": dict(files), "parents": parents, "message": message, "metadata": metadata
        }  # fmt: skip
        return digest

    def resolved(self, ref: str) -> str:
        for kept in (self.branches, self.tags):
            if ref in kept:
                return kept[ref]
        if ref in self.commits:
            return ref
        raise Refused(404, f"reference {ref} not found")

    def files(self, ref: str) -> dict[str, bytes]:
        found: dict[str, bytes] = self.commits[self.resolved(ref)]["files"]
        return found

    def create_branch(self, body: bytes, _query: Mapping[str, str]) -> tuple[int, Any]:
        given = lakefs_sdk.BranchCreation.parse_raw(body)
        if given.name in self.branches:
            raise Refused(409, "branch exists")
        self.branches[given.name] = self.resolved(given.source)
        return 201, self.branches[given.name]

    def upload(self, body: bytes, query: Mapping[str, str], branch: str) -> tuple[int, Any]:
        self.resolved(branch)
        self.staged.setdefault(branch, {})[query["path"]] = body
        return 201, self._stats(query["path"], body)

    def commit(self, body: bytes, _query: Mapping[str, str], branch: str) -> tuple[int, Any]:
        given = lakefs_sdk.CommitCreation.parse_raw(body)
        staged = self.staged.pop(branch, {})
        if not staged and not given.allow_empty:
            raise Refused(400, "commit: no changes")
        head = self.resolved(branch)
        files = self.files(branch) | staged
        made = self.new_commit(files, [head], given.message, given.metadata or {})
        self.branches[branch] = made
        return 201, self._commit(made)

    def get_commit(self, _body: bytes, _query: Mapping[str, str], ref: str) -> tuple[int, Any]:
        return 200, self._commit(self.resolved(ref))

    def create_tag(self, body: bytes, _query: Mapping[str, str]) -> tuple[int, Any]:
        given = lakefs_sdk.TagCreation.parse_raw(body)
        if given.id in self.tags:
            raise Refused(409, "tag exists")
        self.tags[given.id] = self.resolved(given.ref)
        return 201, lakefs_sdk.Ref(id=given.id, commit_id=self.tags[given.id])

    def list_tags(self, _body: bytes, query: Mapping[str, str]) -> tuple[int, Any]:
        names = [name for name in sorted(self.tags) if name.startswith(query.get("prefix", ""))]
        names = [name for name in names if name > query.get("after", "")]
        refs = [lakefs_sdk.Ref(id=name, commit_id=self.tags[name]) for name in names[: self.page]]
        return 200, lakefs_sdk.RefList(pagination=self._pagination(names), results=refs)

    def list_objects(self, _body: bytes, query: Mapping[str, str], ref: str) -> tuple[int, Any]:
        files = self.files(ref)
        names = [name for name in sorted(files) if name.startswith(query.get("prefix", ""))]
        names = [name for name in names if name > query.get("after", "")]
        stats = [self._stats(name, files[name]) for name in names[: self.page]]
        return 200, lakefs_sdk.ObjectStatsList(pagination=self._pagination(names), results=stats)

    def get_object(self, _body: bytes, query: Mapping[str, str], ref: str) -> tuple[int, Any]:
        files = self.files(ref)
        if query["path"] not in files:
            raise Refused(404, "object not found")
        return 200, files[query["path"]]

    def diff(
        self, _body: bytes, _query: Mapping[str, str], left: str, right: str
    ) -> tuple[int, Any]:
        before, after = self.files(left), self.files(right)
        results = [
            lakefs_sdk.Diff(type="added", path=name, path_type="object")
            for name in sorted(after)
            if before.get(name) != after[name]
        ]
        return 200, lakefs_sdk.DiffList(
            pagination=lakefs_sdk.Pagination(
                has_more=False, next_offset="", results=len(results), max_per_page=1000
            ),
            results=results,
        )

    def merge(
        self, body: bytes, _query: Mapping[str, str], source: str, target: str
    ) -> tuple[int, Any]:
        given = lakefs_sdk.Merge.parse_raw(body)
        heads = [self.resolved(target), self.resolved(source)]
        files = self.files(target) | self.files(source)
        made = self.new_commit(files, heads, given.message or "", given.metadata or {})
        self.branches[target] = made
        return 200, lakefs_sdk.MergeResult(reference=made)

    def _pagination(self, names: list[str]) -> lakefs_sdk.Pagination:
        shown = names[: self.page]
        return lakefs_sdk.Pagination(
            has_more=len(names) > self.page,
            next_offset=shown[-1] if len(names) > self.page else "",
            results=len(shown),
            max_per_page=self.page,
        )

    def _commit(self, digest: str) -> lakefs_sdk.Commit:
        kept = self.commits[digest]
        return lakefs_sdk.Commit(
            id=digest, parents=kept["parents"], committer=KEY, message=kept["message"],
            creation_date=int(time.time()), meta_range_id=digest[:16], metadata=kept["metadata"],
        )  # fmt: skip

    def _stats(self, path: str, content: bytes) -> lakefs_sdk.ObjectStats:
        return lakefs_sdk.ObjectStats(
            path=path, path_type="object", physical_address=f"mem://{path}", mtime=0,
            checksum=hashlib.md5(content).hexdigest(), size_bytes=len(content),
        )  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One request: authenticated, looked up in ROUTES, answered in JSON or bytes."""

    server: "Server"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _answer(self, method: str) -> None:
        body = self._body()
        try:
            with self.server.lock:
                status, content = self._called(method, body)
        except Refused as error:
            status, content = error.status, lakefs_sdk.Error(message=error.message)
        kind = "application/json"
        if isinstance(content, bytes):
            kind, sent = "application/octet-stream", content
        elif isinstance(content, str):
            kind, sent = "text/html", content.encode()
        else:
            sent = json.dumps(content.to_dict()).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":  # as uploads come
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _called(self, method: str, body: bytes) -> tuple[int, Any]:
        given = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
        if self.headers.get("authorization") != f"Basic {given}":
            raise Refused(401, "error authenticating request")
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        for wanted, pattern, name in ROUTES:
            found = re.fullmatch(API + pattern, url.path)
            if wanted == method and found:
                answer = getattr(self.server.kept, name)
                status, content = answer(body, query, *map(unquote, found.groups()))
                return status, content
        raise Refused(404, f"{method} {url.path} is not in the contract")


class Server(ThreadingHTTPServer):
    """What handlers share."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kept, self.lock = Kept(), threading.Lock()


class LakeFSServer:
    """The stand-in, on a port of its own; `kept` is what it holds."""

    def __init__(self) -> None:
        self._server = Server()
        self.kept = self._server.kept
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
