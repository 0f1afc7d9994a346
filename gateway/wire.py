"""OpenAI's request bodies at the gateway's edge: parsed once, checked, made ready for the upstream.

Known fields are checked for type and bounds, denied ones are refused, others pass (or are refused,
if the key says so). The upstream gets a body written anew from what was parsed, never these bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from gateway.configuration import Limits
from gateway.errors import BadRequest

Check = Callable[[Any, Limits], str | None]

# Fields that could point the upstream, or us, somewhere else, or run a template of the caller's.
DENIED = frozenset(
    [
        "api_base",
        "base_url",
        "api_key",
        "api_version",
        "custom_llm_provider",
        "chat_template",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "request_id",
        "cache_salt",
        "kv_transfer_params",
        "extra_headers",
        "extra_body",
        "documents",
        "media_url",
    ]
)
PROMPT = ("prompt_id", "prompt_version", "prompt_label", "prompt_variables")
# Ours: for the log, prompts, evaluations and caches; no upstream sees them.
OURS = frozenset(["episode_id", "retrieved_contexts", "reference", "cache", "metadata", *PROMPT])
OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens")
MAX_CONTAINERS = 200_000
TEXT_BYTES = 512
MODEL_CHARACTERS = 256


def parse(body: bytes, limits: Limits) -> dict[str, Any]:
    """The body as a dict; raises BadRequest if it is not a JSON object, or nests too deeply."""
    containers = body.count(b"[") + body.count(b"{")
    if containers > MAX_CONTAINERS:
        raise BadRequest("The body has too many lists and objects.", code="invalid_json")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = str(error).partition(":")[0]
        raise BadRequest(f"The body is not valid JSON: {reason}.", code="invalid_json") from error
    if not isinstance(parsed, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    if containers > limits.json_depth and _depth_exceeds(parsed, limits.json_depth):
        raise BadRequest(
            f"The body nests deeper than {limits.json_depth} levels.", code="invalid_json"
        )
    return parsed


def validate(
    body: Mapping[str, Any], checks: Mapping[str, Check], limits: Limits, *, strict: bool
) -> None:
    """Check a body against an endpoint's table of fields; `strict` refuses unknown ones."""
    for name, value in body.items():
        check = checks.get(name)
        if check is not None:
            wrong = check(value, limits)
            if wrong:
                raise BadRequest(f"'{name}' {wrong}.", param=name)
        elif name in DENIED:
            raise BadRequest(
                f"'{name[:64]}' is not accepted by this gateway.", param=name, code="field_denied"
            )
        elif strict and name not in OURS:
            raise BadRequest(f"Unknown field '{name[:64]}'.", param=name[:64], code="unknown_field")


def upstream_body(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The caller's body without our own fields, for the upstream's `model`."""
    forwarded = {name: value for name, value in body.items() if name not in OURS}
    forwarded["model"] = model
    return forwarded


def overlaid(body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with `fields` in place of its own; the limit on output tokens is one, by any name."""
    limited = any(name in fields for name in OUTPUT_LIMITS)
    kept = {n: v for n, v in body.items() if not (limited and n in OUTPUT_LIMITS)}
    return kept | dict(fields)


def cap_output(body: dict[str, Any], most: int) -> None:
    """Lower the body's limits on output tokens to `most`, or set one."""
    given = [name for name in OUTPUT_LIMITS if body.get(name)]
    for name in given or ["max_tokens"]:
        body[name] = min(body.get(name) or most, most)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _number(low: float, high: float) -> Check:
    def check(value: Any, _limits: Limits) -> str | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        return None if low <= value <= high else f"must be between {low:g} and {high:g}"

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any, _limits: Limits) -> str | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be an integer"
        return None if low <= value <= high else f"must be between {low} and {high}"

    return check


def _of(*types: type, optional: bool = True) -> Check:
    names = {str: "a string", bool: "a boolean", list: "a list", dict: "an object", int: "a number"}
    wanted = " or ".join(names[kind] for kind in types)

    def check(value: Any, _limits: Limits) -> str | None:
        if (optional and value is None) or isinstance(value, types):
            return None
        return f"must be {wanted}"

    return check


def _text(value: Any, _limits: Limits) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return "must be a string"
    if len(value) > TEXT_BYTES:
        return f"must be at most {TEXT_BYTES} characters"
    return None


def _model(value: Any, _limits: Limits) -> str | None:
    if not isinstance(value, str) or not value:
        return "must be a non-empty string"
    if len(value) > MODEL_CHARACTERS or not value.isprintable():
        return f"must be at most {MODEL_CHARACTERS} printable characters"
    return None


def _choices(value: Any, limits: Limits) -> str | None:
    return _integer(1, limits.choices)(value, limits)


def _stop(value: Any, _limits: Limits) -> str | None:
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, list) and len(value) <= 4 and all(isinstance(s, str) for s in value):
        return None
    return "must be a string or a list of at most 4 strings"


def _messages(value: Any, limits: Limits) -> str | None:
    if not isinstance(value, list) or not value:
        return "must be a non-empty list"
    if len(value) > limits.messages:
        return f"must have at most {limits.messages} messages"
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            return f"[{index}] must be an object"
        if not isinstance(message.get("role"), str):
            return f"[{index}].role must be a string"
        content = message.get("content")
        if isinstance(content, list):
            wrong = _content_parts(content)
            if wrong:
                return f"[{index}].content {wrong}"
        elif content is not None and not isinstance(content, str):
            return f"[{index}].content must be a string or a list of parts"
    return None


def _content_parts(parts: list[Any]) -> str | None:
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return "must have parts that are objects with a type"
        for name, media in part.items():
            url = media.get("url") if isinstance(media, dict) else media
            if name.endswith("_url") and not _is_inline(url):
                return f"may carry {name} as a data: URL only"
    return None


def _is_inline(url: Any) -> bool:
    return isinstance(url, str) and url.startswith("data:")


def _prompt(value: Any, _limits: Limits) -> str | None:
    if isinstance(value, str) or (isinstance(value, list) and value):
        return None
    return "must be a string or a non-empty list"


def _input(value: Any, limits: Limits) -> str | None:
    if isinstance(value, str):
        return None if value else "must not be empty"
    if not isinstance(value, list) or not value:
        return "must be a string or a non-empty list"
    if len(value) > limits.embedding_inputs and not isinstance(value[0], int):
        return f"must have at most {limits.embedding_inputs} items"
    if not (
        all(isinstance(item, str) and item for item in value)
        or all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        or all(isinstance(item, list) and item for item in value)
    ):
        return "must be all non-empty strings, all token numbers, or all lists of token numbers"
    return None


def _metadata(value: Any, _limits: Limits) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > 16:
        return "must be an object of at most 16 tags"
    for name, tag in value.items():
        if len(name) > 64 or not isinstance(tag, str) or len(tag) > TEXT_BYTES:
            return f"must map names of at most 64 characters to at most {TEXT_BYTES} of text"
    return None


def _stream_options(value: Any, _limits: Limits) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        return "must be an object"
    if not isinstance(value.get("include_usage", False), bool):
        return ".include_usage must be a boolean"
    return None


MAX_TOKENS = 10_000_000

_SHARED: dict[str, Check] = {
    "model": _model,
    "user": _text,
    "metadata": _metadata,
    "episode_id": _text,
    "retrieved_contexts": _of(list),
    "reference": _of(str, dict, list),
    "cache": _of(dict),
}
_SAMPLING: dict[str, Check] = {
    **_SHARED,
    "stream": _of(bool),
    "stream_options": _stream_options,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "n": _choices,
    "max_tokens": _integer(1, MAX_TOKENS),
    "max_completion_tokens": _integer(1, MAX_TOKENS),
    "seed": _integer(-(2**63), 2**63 - 1),
    "stop": _stop,
    "logit_bias": _of(dict),
}
PREDICTION: dict[str, Check] = {"user": _text, "episode_id": _text, "tags": _metadata}
CHAT: dict[str, Check] = {
    **_SAMPLING,
    "messages": _messages,
    "logprobs": _of(bool),
    "top_logprobs": _integer(0, 20),
    "tools": _of(list),
    "tool_choice": _of(str, dict),
    "parallel_tool_calls": _of(bool),
    "response_format": _of(dict),
}
COMPLETION: dict[str, Check] = {
    **_SAMPLING,
    "prompt": _prompt,
    "best_of": _choices,
    "echo": _of(bool),
    "logprobs": _integer(0, 20),
    "suffix": _of(str),
}
EMBEDDING: dict[str, Check] = {
    **_SHARED,
    "input": _input,
    "dimensions": _integer(1, 65536),
    "encoding_format": _of(str),
}
