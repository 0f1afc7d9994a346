"""A conversation as a model is trained on it: what was asked, what was answered, as plain text.

Bodies come from the request log, corrected answers from feedback. What is not text alone (tools,
images, several answers) is refused: a training on a part of what the model saw teaches the wrong
thing.
"""

import json
from collections.abc import Mapping
from typing import Any

import orjson

from evals.contents import text_of

ROLES = frozenset({"system", "developer", "user", "assistant"})
MESSAGE_FIELDS = frozenset({"role", "content", "name", "refusal", "tool_calls", "annotations"})

Message = Mapping[str, str]


class Unusable(ValueError):
    """It cannot be trained on; `reason` is `no_body`, `not_text`, `cut_short` or `empty`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def asked_in(request: str | None) -> tuple[Message, ...]:
    """The messages of a logged request, as the model saw them: roles and texts.

    Raises:
        Unusable: there is no body, or it is not plain text that ends with the user's turn.
    """
    body = _body(request)
    given = body.get("messages")
    if not isinstance(given, list) or not given or body.get("tools") or body.get("functions"):
        raise Unusable("not_text")
    messages = []
    for message in given:
        content = text_of(message.get("content")) if isinstance(message, dict) else None
        if content is None or message.get("role") not in ROLES or message.get("tool_calls"):
            raise Unusable("not_text")
        messages.append({"role": message["role"], "content": content})
    if messages[-1]["role"] != "user":
        raise Unusable("not_text")
    return tuple(messages)


def answered_in(response: str | None) -> str:
    """The text of a logged answer; a stream is logged as a unary answer would have been.

    Raises:
        Unusable: there is no body, not one text, nothing in it, or it stopped at its token limit:
            whoever is trained on that never learns to end.
    """
    choices = _body(response).get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Unusable("not_text")
    message = choices[0].get("message")
    if not isinstance(message, dict) or message.get("tool_calls"):
        raise Unusable("not_text")
    if choices[0].get("finish_reason") == "length":
        raise Unusable("cut_short")
    return _filled(text_of(message.get("content")) or "")


def demonstrated(value: Any) -> str:
    """A demonstration as text: a text, a message's content, or any JSON as `json.dumps` writes it.

    Raises:
        Unusable: a message without text, or an empty text.
    """
    if isinstance(value, str):
        return _filled(value)
    if not _is_message(value):
        return json.dumps(value, ensure_ascii=False)
    content = text_of(value["content"])
    if content is None or value.get("tool_calls"):
        raise Unusable("not_text")
    return _filled(content)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("content"), str | list):
        return False
    named = value.get("role") == "assistant" and value.keys() <= MESSAGE_FIELDS
    return named or value.keys() == {"content"}


def _filled(text: str) -> str:
    if not text.strip():
        raise Unusable("empty")
    return text.strip()


def _body(text: str | None) -> dict[str, Any]:
    if not text:
        raise Unusable("no_body")
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise Unusable("not_text")
    return body
