"""What is known of one request: the record that the spool, the log, the metrics and money share."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

NANO_PER_USD = 1_000_000_000


class Status(StrEnum):
    """How a request ended, as its client could tell.

    `ok`: the whole answer was ready and on its way. `rejected`: refused by the gateway, the
    upstream was not asked. `upstream_error`: the upstream refused, failed or answered nonsense.
    `upstream_cut`: a stream stopped before its end. `timeout`: the upstream was too slow.
    `client_disconnected`: the client went away first. `failed`: the gateway itself could not
    finish. `interrupted`: the gateway died on the way (written by the shipper, from the intent
    record).
    """

    OK = "ok"
    REJECTED = "rejected"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_CUT = "upstream_cut"
    TIMEOUT = "timeout"
    CLIENT_DISCONNECTED = "client_disconnected"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class RequestRecord:
    """One row of the request log, without the bodies. Filled in while the request is under way.

    Attributes:
        request_id: UUIDv7, canonical text.
        ts: arrival, microseconds since the epoch, UTC.
        model: the alias that was asked for; target: `upstream/model` that answered.
        cost_nano_usd: what it costs, in 1e-9 USD; saved_nano_usd: what a cache spared.
        ttft_ms: until the first byte of content; latency_ms: until the last; overhead_ms: the
            gateway's own part.
        usage_source: `upstream`, `estimated`, `counted` (predictions) or None (nothing was used).
        tags: the caller's `metadata`, text to text.
        contexts: `retrieved_contexts` and `reference`, as sent; for evaluations.
        response_part: spool file that holds the response where it is too long for the record.
    """

    request_id: str
    ts: int
    endpoint: str
    tenant: str | None = None
    team: str | None = None
    key_id: str | None = None
    user: str | None = None
    episode_id: str | None = None
    model: str | None = None
    target: str | None = None
    adapter: str | None = None
    experiment: str | None = None
    variant: str | None = None
    prompt_name: str | None = None
    prompt_version: str | None = None
    prompt_sha: str | None = None
    status: str = Status.FAILED
    http_status: int = 0
    error_code: str | None = None
    finish_reason: str | None = None
    stream: bool = False
    cache: str | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    overhead_ms: float | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_source: str | None = None
    cost_nano_usd: int = 0
    saved_nano_usd: int = 0
    price_version: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    config_hash: str | None = None
    upstream_id: str | None = None
    contexts: Any = None
    response_part: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Field names to values, ready for JSON."""
        return asdict(self)


def usd_text(nano: int) -> str:
    """Nano-USD as decimal USD with nine places, such as `0.000012500`."""
    whole, rest = divmod(abs(nano), NANO_PER_USD)
    return f"{'-' if nano < 0 else ''}{whole}.{rest:09d}"
