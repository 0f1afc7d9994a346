"""Personal data out of bodies that a key wants redacted in the log.

Patterns, not understanding: e-mail addresses, credentials, IBANs, card and telephone numbers. A
JSON body is parsed, so that every string is seen as its reader sees it, and stays valid JSON; keys
and numbers are left alone. Anything else is redacted as text.
"""

import re
from typing import Any

import orjson

_PATTERNS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("[email]", r"[\w.%+-]{1,64}@[\w.-]{1,253}\.[A-Za-z]{2,24}"),
        ("[credential]", r"(?<![A-Za-z0-9])(?:sk|pk|ghp|xox[abp])[-_][A-Za-z0-9_-]{16,200}"),
        (
            "[iban]",
            r"(?<![A-Z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?![A-Z0-9])",
        ),
        ("[card]", r"(?<![0-9.])[0-9]{4}(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,7}(?![0-9])"),
        ("[phone]", r"(?<![0-9.])(?:\+|00)[0-9]{1,3}(?:[ ()/.-]{0,2}[0-9]{2,5}){2,5}(?![0-9])"),
    )
)


def redact(body: bytes) -> bytes:
    """`body` with every match replaced by the name of what it was."""
    try:
        return orjson.dumps(_redacted(orjson.loads(body)))
    except (RecursionError, TypeError, ValueError):
        return redact_text(body.decode("utf-8", "replace")).encode()


def redact_text(text: str) -> str:
    """The same for text."""
    for name, pattern in _PATTERNS:
        text = pattern.sub(name, text)
    return text


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    if isinstance(value, dict):
        return {name: _redacted(item) for name, item in value.items()}
    return value
