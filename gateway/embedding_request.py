"""The body of POST /v1/embeddings, checked, as the embedding server works on it."""

from dataclasses import dataclass
from typing import Any, Literal

from gateway.configuration import Limits
from gateway.embedding_key import normalized
from gateway.errors import BadRequest
from gateway.wire import EMBEDDING, parse, validate

Encoding = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The request's `cache` field.

    Attributes:
        ttl: seconds that what is computed now may be kept, at most; None is the configured time.
        no_cache: compute, whatever is kept.
        no_store: keep nothing that is computed now.
    """

    ttl: int | None = None
    no_cache: bool = False
    no_store: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """What is to be embedded, and how it is to be answered. Texts are normalized, in order."""

    model: str
    texts: tuple[str, ...]
    encoding: Encoding = "float"
    dimensions: int | None = None
    cache: CacheControl = CacheControl()


def parse_request(body: bytes, limits: Limits) -> EmbeddingRequest:
    """Read and check a body; raises BadRequest that names the field."""
    parsed = parse(body, limits)
    validate(parsed, EMBEDDING, limits, strict=True)
    for name in ("model", "input"):
        if parsed.get(name) is None:
            raise BadRequest(f"'{name}' is required.", param=name, code="missing_field")
    encoding: Any = parsed.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise BadRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    return EmbeddingRequest(
        model=parsed["model"],
        texts=_texts(parsed["input"]),
        encoding=encoding,
        dimensions=parsed.get("dimensions"),
        cache=_cache(parsed.get("cache")),
    )


def _texts(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not all(isinstance(item, str) for item in items):
        raise BadRequest(
            "'input' must be text: token numbers belong to one tokenizer, and this model's is "
            "another than the sender's (with LangChain, set check_embedding_ctx_length=False).",
            param="input",
            code="tokens_not_supported",
        )
    return tuple(normalized(text) for text in items)


def _cache(value: Any) -> CacheControl:
    if value is None:
        return CacheControl()
    unknown = sorted(set(value) - {"ttl", "no_cache", "no_store"})
    if unknown:
        raise BadRequest(f"Unknown field 'cache.{unknown[0][:64]}'.", param="cache")
    ttl = value.get("ttl")
    if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int) or ttl < 1):
        raise BadRequest("'cache.ttl' must be a whole number of seconds, 1 or more.", param="cache")
    for name in ("no_cache", "no_store"):
        if not isinstance(value.get(name, False), bool):
            raise BadRequest(f"'cache.{name}' must be a boolean.", param="cache")
    return CacheControl(ttl, value.get("no_cache", False), value.get("no_store", False))
