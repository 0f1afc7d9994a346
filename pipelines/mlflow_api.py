"""MLflow's REST API over plain HTTP: each call answers, or fails, within a few seconds.

A call runs in a thread of its own and is given up at its deadline, so that nothing on the way (a
name server, a server that accepts and is silent, one that sends a byte a minute) holds the caller.
Nothing is retried here: who calls knows whether waiting helps.

Source: https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

import base64
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlencode, urlsplit

CALL_SECONDS = 4.0
UPLOAD_SECONDS = 300.0
API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
NO_SUCH = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"
SHOWN_CHARACTERS = 300


class MLflowAway(RuntimeError):
    """No answer in time, none at all, or one that says that the server is broken."""


class MLflowRefused(RuntimeError):
    """MLflow understood and said no. `code` is its error code, such as `NO_SUCH`."""

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _Exchange:
    """One request on a connection of its own, for a thread to run and another to give up."""

    connection: HTTPConnection
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | IO[bytes] | None = None
    given_up: bool = field(default=False)

    def run(self) -> tuple[int, bytes]:
        try:
            self.connection.request(self.method, self.path, self.body, self.headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        finally:
            self.connection.close()

    def give_up(self) -> None:
        """End the thread's wait: its read or write fails at once."""
        socket = self.connection.sock
        if socket is not None:
            try:
                socket.shutdown(2)
            except OSError:
                pass  # it ended by itself in this moment


class MLflowAPI:
    """One MLflow server. Holds no connection: it can be shared by threads.

    Args:
        tracking_uri: `http://host:port`, as MLflow's own clients take it; a user and a password in
            it (`https://user:password@host`) are sent as basic authentication.
        seconds: the longest that a call may take; an upload may take longer as long as it moves.

    Raises:
        ValueError: the address is not a server's.
    """

    def __init__(self, tracking_uri: str, *, seconds: float = CALL_SECONDS):
        parts = urlsplit(tracking_uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"mlflow.tracking_uri: {tracking_uri!r} is not the address of an MLflow server; "
                "it begins with http:// or https://"
            )
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._seconds = seconds
        self._headers = {}
        if parts.username:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        port = f":{parts.port}" if parts.port else ""
        self.address = f"{parts.scheme}://{parts.hostname}{port}{self._prefix}"

    def get(self, what: str, **query: str | int) -> dict[str, Any]:
        """Ask for `what`, such as `runs/get`.

        Raises (as all calls here):
            MLflowAway: no answer within the seconds given.
            MLflowRefused: the answer is no.
        """
        return self._call("GET", f"{API}{what}?{urlencode(query)}")

    def post(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send `body` to `what`, such as `runs/create`."""
        return self._call("POST", f"{API}{what}", body)

    def delete(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Delete what `body` names."""
        return self._call("DELETE", f"{API}{what}", body)

    def upload(self, artifact_uri: str, name: str, content: Path | bytes) -> None:
        """Put `content` under `name` among the artifacts of a run; replaces what is there.

        Raises:
            MLflowRefused: the run's artifacts are not kept behind the server.
        """
        root = urlsplit(artifact_uri)
        if root.scheme != "mlflow-artifacts":
            raise MLflowRefused(
                f"MLflow at {self.address} keeps artifacts at {artifact_uri}, which only its "
                "server can reach from here; start it with --artifacts-destination and let it "
                "serve them",
                "ARTIFACTS_NOT_SERVED",
            )
        path = ARTIFACTS + quote(f"{root.path.strip('/')}/{name}")
        if isinstance(content, bytes):
            self._exchange("PUT", path, content, len(content))
            return
        with content.open("rb") as file:
            self._exchange("PUT", path, file, content.stat().st_size)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        encoded = None if body is None else json.dumps(body).encode()
        answer = self._exchange(method, path, encoded, None)
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError) as error:
            raise MLflowAway(
                f"what answers at {self.address} is not MLflow: {_shown(answer)}"
            ) from error

    def _exchange(
        self, method: str, path: str, body: bytes | IO[bytes] | None, upload: int | None
    ) -> bytes:
        """One call. `upload` is the length of a body that may take longer than other calls."""
        headers = {**self._headers, "Content-Type": "application/json"}
        seconds = self._seconds
        if upload is not None:
            headers |= {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(upload),
            }
            seconds = max(seconds, UPLOAD_SECONDS)
        kind = HTTPSConnection if self._tls else HTTPConnection
        connection = kind(self._host, self._port, timeout=self._seconds)
        exchange = _Exchange(connection, method, self._prefix + path, headers, body)
        status, answer = self._within(seconds, exchange)
        if status >= 300:
            raise self._error(status, answer, path)
        return answer

    def _within(self, seconds: float, exchange: _Exchange) -> tuple[int, bytes]:
        thread = ThreadPoolExecutor(1, "mlflow")
        try:
            return thread.submit(exchange.run).result(seconds)
        except TimeoutError as error:
            exchange.give_up()
            raise MLflowAway(
                f"MLflow at {self.address} does not answer within {self._seconds:g} s"
            ) from error
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise MLflowAway(f"MLflow at {self.address} is away: {reason}") from error
        finally:
            thread.shutdown(wait=False)

    def _error(self, status: int, answer: bytes, path: str) -> MLflowAway | MLflowRefused:
        try:
            said = json.loads(answer)
            code, message = str(said["error_code"]), str(said.get("message", ""))
        except (ValueError, TypeError, KeyError):
            return MLflowAway(
                f"{self.address}{path.partition('?')[0]} answers {status}: {_shown(answer)}; "
                "is MLflow there, and does it let this host in (--allowed-hosts)?"
            )
        if status >= 500 or status == 429:
            return MLflowAway(f"MLflow at {self.address} answers {status}: {message}")
        return MLflowRefused(f"MLflow at {self.address}: {message}", code)


def experiment_id(api: MLflowAPI, name: str) -> str:
    """Id of the experiment `name`, made if there is none.

    Raises what calls raise; MLflowRefused also where it was deleted.
    """
    try:
        found = api.get("experiments/get-by-name", experiment_name=name)["experiment"]
    except MLflowRefused as error:
        if error.code != NO_SUCH:
            raise
    else:
        if found["lifecycle_stage"] != "active":
            raise MLflowRefused(
                f"the experiment {name!r} in MLflow was deleted; restore it there "
                f"(mlflow experiments restore -x {found['experiment_id']})",
                EXISTS,
            )
        return str(found["experiment_id"])
    try:
        return str(api.post("experiments/create", {"name": name})["experiment_id"])
    except MLflowRefused as error:
        if error.code != EXISTS:
            raise
    return experiment_id(api, name)  # another process made it in this moment


def pairs(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Tags or parameters as MLflow takes them; those that are None are left out."""
    return [{"key": key, "value": str(one)} for key, one in values.items() if one is not None]


def quoted(value: str) -> str:
    """`value` as a string in a search filter.

    Raises:
        ValueError: it has a quotation mark, which MLflow's filters cannot express.
    """
    if "'" in value or '"' in value:
        raise ValueError(f"{value!r}: a quotation mark cannot be searched for in MLflow")
    return f"'{value}'"


def _shown(answer: bytes) -> str:
    text = answer.decode("utf-8", "replace").strip()
    return text[:SHOWN_CHARACTERS] or "nothing"
