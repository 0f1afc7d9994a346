"""Tokens used: read from the upstream's answer, or counted here where it gives none."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from gateway.events import event_json, split_events

BYTES_PER_TOKEN = 4
MOST_TOKENS = 2**40
SPOKEN = (
    "content", "text", "refusal", "reasoning_content", "reasoning", "name", "arguments",
    "function", "tool_calls", "function_call",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `source` is `upstream` or `estimated`.

    `cached_tokens` are part of `input_tokens`, `reasoning_tokens` of `output_tokens`.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: str = "upstream"


def read_usage(usage: Any) -> Usage | None:
    """Usage from an answer's `usage` object; None if there is none that makes sense.

    An explicit 0 stays 0. An answer without `completion_tokens` (embeddings) has none.
    """
    if not isinstance(usage, Mapping):
        return None
    input_tokens = _count(usage, "prompt_tokens")
    output_tokens = _count(usage, "completion_tokens") if "completion_tokens" in usage else 0
    if input_tokens is None or output_tokens is None:
        return None
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=_detail(usage, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def answer_text(data: bytes) -> str:
    """The text of an answer, all choices, from its JSON or from its stream of events."""
    try:
        whole = orjson.loads(data)
    except orjson.JSONDecodeError:
        events = (event_json(event) for event in split_events(data))
        return "".join(text for event in events if event for text in _said(event))
    return "".join(_said(whole)) if isinstance(whole, dict) else ""


def _said(answer: Mapping[str, Any]) -> list[str]:
    choices = answer.get("choices")
    texts = []
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping):
            texts += _texts([choice.get("text"), choice.get("message"), choice.get("delta")])
    return texts


def estimate(request: Mapping[str, Any], answer_text: str, tokenizer: Path | None) -> Usage:
    """Count tokens here. Slow: call it off the event loop.

    With a `tokenizer.json` the count is the model's own, but for its template; without one it is
    four UTF-8 bytes a token, the rule of thumb for English.
    """
    given = [request.get(name) for name in ("messages", "prompt", "input", "tools")]
    prompt = "\n".join(_texts(given))
    return Usage(
        input_tokens=_tokens(prompt, tokenizer) + _token_ids(given[1:3]),
        output_tokens=_tokens(answer_text, tokenizer),
        source="estimated",
    )


def _tokens(text: str, tokenizer: Path | None) -> int:
    if not text:
        return 0
    if tokenizer is not None:
        return len(_load_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids)
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


@lru_cache(maxsize=8)
def _load_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _texts(value: Any) -> list[str]:
    """Every piece of text in messages, tools, prompts and inputs, in order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, Mapping):
        return [text for name in SPOKEN for text in _texts(value.get(name))]
    return []


def _token_ids(value: Any) -> int:
    """How many tokens a prompt of token numbers has; 0 for text."""
    if not isinstance(value, list):
        return 0
    return sum(1 if isinstance(item, int) else _token_ids(item) for item in value)


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS:
        return value
    return None


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details, name) or 0) if isinstance(details, Mapping) else 0
