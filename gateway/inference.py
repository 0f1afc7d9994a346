"""One inference request under way: what is known of it so far. The stages of the request path
(`gateway.request_path`) fill it in; the ledger settles it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.exchange import PRIVATE, Exchange, HeaderList
from gateway.keys import Key
from gateway.live import Snapshot
from gateway.records import RequestRecord
from gateway.routing import Target
from gateway.spool import Part
from gateway.variants import Variant
from gateway.wire import TEXT_BYTES

MILLISECONDS = 1000


@dataclass(slots=True)
class Inference:
    """One request.

    Attributes:
        snapshot: the configuration that was in force when it came.
        raw, body: the request's bytes, and what they say; with the messages of the prompt that
            it names, if it names one.
        variables: what the prompt was rendered with; None without a prompt.
        variant: what the alias's split says of it, if there is one.
        part: where the log keeps an answer that is too long for memory.
        dropped_bytes: length of the answer's text that neither memory nor a file holds any more.
        own_seconds: time that the gateway itself spent on it.
        on_close: what its client's going away does; the connection may by now watch another's.
        settled: it is priced, logged and counted; that happens once.
    """

    exchange: Exchange
    snapshot: Snapshot
    record: RequestRecord
    key: Key | None = None
    raw: bytes = b""
    body: dict[str, Any] | None = None
    variables: Mapping[str, Any] | None = None
    target: Target | None = None
    variant: Variant | None = None
    part: Part | None = None
    dropped_bytes: int = 0
    on_close: Callable[[], object] | None = None
    own_seconds: float = 0.0
    settled: bool = False

    def spend(self, since: float) -> None:
        """Count the time from `since` until now as the gateway's own."""
        self.own_seconds += time.perf_counter() - since

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came, to the microsecond."""
        return round((time.perf_counter() - self.exchange.started) * MILLISECONDS, 3)

    def tag_client_id(self) -> None:
        """Keep the client's own `x-request-id` as a tag."""
        client_id = self.exchange.headers.get(b"x-request-id")
        if client_id is not None:
            self.record.tags["client_request_id"] = client_id.decode("latin-1")[:TEXT_BYTES]

    def wants_usage(self) -> bool:
        """Whether the client asked for a stream's usage itself."""
        options = (self.body or {}).get("stream_options") or {}
        return bool(options.get("include_usage"))

    def headers(self) -> HeaderList:
        """The response headers that every answer carries."""
        record = self.record
        headers = [(b"x-request-id", record.request_id.encode()), PRIVATE]
        if record.target is not None:
            headers.append((b"x-model", record.target.encode("ascii", "replace")))
        if record.variant is not None:
            headers.append((b"x-variant", record.variant.encode("ascii", "replace")))
        if record.prompt_version is not None:
            headers.append((b"x-prompt-version", record.prompt_version.encode("ascii", "replace")))
        if record.cache is not None:
            headers.append((b"x-cache", record.cache.encode()))
        headers.append((b"x-gateway-overhead-ms", b"%.3f" % (self.own_seconds * MILLISECONDS)))
        return headers
