"""Everything the gateway answers with instead of a result: in OpenAI's error shape, or under `/v2`
in that of the Open Inference Protocol.

    GatewayError
    ├── BadRequest                  400  invalid_request_error
    │   └── BodyTooLarge            413
    ├── Unauthorized                401  authentication_error
    ├── ModelNotFound               404  model_not_found
    ├── NotFound                    404
    ├── MethodNotAllowed            405
    ├── Unavailable                 503  with Retry-After
    │   └── NoVersion               503  no version of a tabular model answers yet
    └── UpstreamFailure
        ├── UpstreamRefused         the upstream's own 4xx, passed on
        ├── UpstreamRateLimited     429  with the upstream's Retry-After
        ├── UpstreamBroken          502  unreachable, reset, 5xx, not an OpenAI answer
        │   └── UpstreamCut         502  a stream that stopped before its end
        ├── UpstreamTimeout         504
        └── ModelServerAway         503  a tabular model's server, or the version on it

Each class owns its HTTP status, its `type` and `code`, and the status its request gets in the log.
"""

from typing import Any

import orjson

from gateway.records import Status


class GatewayError(Exception):
    """An answer in OpenAI's error shape: `{"error": {message, type, param, code}}`; or in that of
    the Open Inference Protocol: `{"error": message}`."""

    http_status = 500
    type = "api_error"
    code: str | None = "internal_error"
    log_status = Status.FAILED

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Extra response headers."""
        return {}

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def json(self, path: str = "") -> bytes:
        """The body, encoded, in the shape that clients of `path` read."""
        inference_protocol = path.startswith("/v2/")
        return orjson.dumps({"error": self.message} if inference_protocol else self.body())


class BadRequest(GatewayError):
    """The request itself is wrong; sending it again changes nothing."""

    http_status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    log_status = Status.REJECTED


class BodyTooLarge(BadRequest):
    """The body is over the limit."""

    http_status = 413
    code = "request_too_large"


class Unauthorized(GatewayError):
    """No key, a wrong one, an expired or a blocked one: always the same answer."""

    http_status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    log_status = Status.REJECTED

    def __init__(self) -> None:
        super().__init__("Invalid API key: send a valid one as 'Authorization: Bearer sk-…'.")

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class ModelNotFound(GatewayError):
    """The model does not exist, or the key may not use it; the answer does not say which."""

    http_status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    log_status = Status.REJECTED

    def __init__(self, model: str):
        super().__init__(
            f"The model {model[:128]!r} does not exist or this key may not use it; "
            "GET /v1/models lists those it may use.",
            param="model",
        )


class NotFound(GatewayError):
    """No such thing, or not this key's."""

    http_status = 404
    type = "invalid_request_error"
    code = "not_found"
    log_status = Status.REJECTED


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not."""

    http_status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    log_status = Status.REJECTED


class Unavailable(GatewayError):
    """The gateway cannot take the request now; a later one may pass."""

    http_status = 503
    type = "service_unavailable_error"
    code = "unavailable"
    log_status = Status.REJECTED
    retry_after_seconds = 1

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_seconds)}


class NoVersion(Unavailable):
    """No version of a tabular model answers yet."""

    code = "no_version"
    retry_after_seconds = 30

    def __init__(self, alias: str):
        super().__init__(
            f"No version of {alias!r} answers yet: train one (llmops train), or name one as its "
            "'model' in the configuration.",
            param="model",
        )


class UpstreamFailure(GatewayError):
    """The upstream was asked, or could not be."""

    http_status = 502
    type = "upstream_error"
    code = "upstream_error"
    log_status = Status.UPSTREAM_ERROR


class UpstreamRefused(UpstreamFailure):
    """The upstream answered 4xx: its status and message are passed on."""

    type = "invalid_request_error"
    code = "upstream_refused"

    def __init__(self, http_status: int, message: str, *, param: str | None, code: str | None):
        super().__init__(message, param=param, code=code)
        self.http_status = http_status


class UpstreamRateLimited(UpstreamFailure):
    """The upstream answered 429."""

    http_status = 429
    type = "rate_limit_error"
    code = "upstream_rate_limited"

    def __init__(self, message: str, retry_after: str | None):
        super().__init__(message)
        self.retry_after = retry_after if retry_after and retry_after.isdigit() else "1"

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": self.retry_after}


class UpstreamBroken(UpstreamFailure):
    """Unreachable, reset, 5xx, or an answer that is not OpenAI's."""

    code = "upstream_broken"


class UpstreamCut(UpstreamBroken):
    """A stream stopped before its end."""

    code = "upstream_cut"
    log_status = Status.UPSTREAM_CUT


class UpstreamTimeout(UpstreamFailure):
    """No connection, first byte or next byte in time."""

    http_status = 504
    code = "upstream_timeout"
    log_status = Status.TIMEOUT


class ModelServerAway(UpstreamFailure):
    """A tabular model's server does not answer, or does not have the version yet."""

    http_status = 503
    type = "service_unavailable_error"
    code = "model_server_away"

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": "1"}
