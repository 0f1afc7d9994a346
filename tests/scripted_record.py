"""What the scripted upstream keeps of the requests it saw."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from tests.scripted_answers import find_nonce


@dataclass(slots=True)
class Call:
    """One request as this server saw it, and what it did about it.

    Attributes:
        number: running number, the same as in the answer's id.
        body: the parsed JSON, or None where it was not JSON.
        script: the model name.
        events: `data:` events written. sent: bytes written, with the head.
        output_tokens: content tokens of the whole answer (events that may never be sent).
        finished: everything was written, as the script wanted.
        aborted: the peer went away before that.
    """

    number: int
    connection: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: Any = None
    script: str = ""
    nonce: str | None = None
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    status: int = 0
    events: int = 0
    sent: int = 0
    output_tokens: int = 0
    finished: bool = False
    aborted: bool = False

    def header(self, name: str) -> str | None:
        """The last value of a header."""
        values = [value for key, value in self.headers if key == name.lower()]
        return values[-1] if values else None


@dataclass(slots=True)
class Incoming:
    """A request that is being read."""

    path: str = ""
    method: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)


class Recorder:
    """Every request, in order of arrival (but `fixed` ones), and counters.

    Counters: `connections`, `aborted`, `unreadable`, `fixed`, and one for each path.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self._number = 0

    def count(self, what: str) -> int:
        """Count one more, and say how many there are now."""
        self.counts[what] += 1
        return self.counts[what]

    def record(self, connection: int, incoming: Incoming, raw: bytes) -> Call:
        """Keep a request."""
        try:
            body = orjson.loads(raw) if raw else None
        except ValueError:
            body = None
        model = body.get("model") if isinstance(body, dict) else None
        self._number += 1
        call = Call(
            number=self._number,
            connection=connection,
            method=incoming.method,
            path=incoming.path,
            headers=incoming.headers,
            body=body,
            script=model if isinstance(model, str) else "",
            nonce=find_nonce(raw),
        )
        self.calls.append(call)
        self.count(incoming.path)
        return call

    def report(self, path: str) -> bytes:
        """The answer to `/_calls`, `/_counts` and `/_reset`."""
        found: Any = self.counts
        if path == "/_calls":
            found = [asdict(call) for call in self.calls]
        elif path == "/_reset":
            self.calls.clear()
            self.counts.clear()
        return orjson.dumps(found)
