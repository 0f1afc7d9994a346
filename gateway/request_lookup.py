"""`GET /v1/requests/{id}`: a request's row, asked of the admin process, which reads the log.

Workers hold no reader of the log. The row is shown to keys of its own tenant only, without bodies.
"""

from urllib.parse import quote

import orjson

from gateway.errors import NotFound, Unavailable, UpstreamFailure
from gateway.keys import Key
from gateway.upstream import Transport

SHOWN = [
    "request_id",
    "upstream_id",
    "ts",
    "endpoint",
    "model",
    "target",
    "variant",
    "prompt_name",
    "prompt_version",
    "status",
    "http_status",
    "error_code",
    "finish_reason",
    "stream",
    "cache",
    "ttft_ms",
    "latency_ms",
    "overhead_ms",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "usage_source",
    "cost_usd",
    "saved_usd",
    "price_version",
    "user",
    "episode_id",
    "tags",
]


class RequestLookup:
    """Asks the admin process at `url`, with its credential."""

    def __init__(self, url: str, credential: str, transport: Transport):
        self._url = url
        self._headers = {"authorization": f"Bearer {credential}"}
        self._transport = transport

    async def find(self, request_id: str, key: Key) -> bytes:
        """The row as JSON; NotFound if there is none, or it is another tenant's."""
        url = f"{self._url}/logs/{quote(request_id, safe='')}"
        try:
            status, body = await self._transport.get(url, self._headers)
        except UpstreamFailure as error:
            raise Unavailable("The request log cannot be read now; try later.") from error
        if status == 404:
            raise NotFound(f"No request {request_id[:128]!r}.", param="request_id")
        if status != 200:
            raise Unavailable("The request log cannot be read now; try later.")
        row = orjson.loads(body)
        if row.get("tenant") != key.tenant:
            raise NotFound(f"No request {request_id[:128]!r}.", param="request_id")
        return orjson.dumps({name: row.get(name) for name in SHOWN})
