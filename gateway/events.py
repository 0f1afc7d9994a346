"""Server-sent events as bytes (WHATWG HTML, section 9.2): split, read, written."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE = re.compile(rb"\r\n|\n|\r")


def split_events(data: bytes) -> Iterator[bytes]:
    """Events of `data`, each with its boundary."""
    start = 0
    for boundary in BOUNDARY.finditer(data):
        yield data[start : boundary.end()]
        start = boundary.end()
    if start < len(data):
        yield data[start:]


def event_data(event: bytes) -> bytes:
    """The event's data: its `data:` lines, joined by newlines."""
    lines = []
    for line in _LINE.split(event):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(lines)


def event_json(event: bytes) -> dict[str, Any] | None:
    """The event's data as a JSON object, or None."""
    try:
        parsed = orjson.loads(event_data(event))
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def encode_event(value: Mapping[str, Any]) -> bytes:
    """One event with a JSON object."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
