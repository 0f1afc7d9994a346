"""From a stream's server-sent events to the completed object that a unary call would have given.

Covers `chat.completion.chunk` and `text_completion` streams (all choices, tool calls, log
probabilities, usage). Text is exact: the pieces are joined, nothing else. A stream that is none of
these, or holds an event that is not JSON, is kept as it came. An unfinished last event, as a cut
leaves it, is dropped, as the format says.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import Iterator
from typing import Any

import orjson

_DONE = b"[DONE]"
_STARTS = (b"data", b"event", b"id", b"retry", b":", b"\n", b"\r", b"\xef\xbb\xbf")
_OBJECTS = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
_FIRST_WINS = frozenset({"id", "created", "model", "object"})
_LAST_WINS = frozenset({"id", "type", "role", "index", "finish_reason", "stop_reason"})

Object = dict[str, Any]


class _Unreadable(ValueError):
    """The stream is not one of completion chunks."""


def completed_response(body: bytes) -> bytes:
    """The completed object as JSON, if `body` is a stream of completion chunks; else `body`."""
    if not body.startswith(_STARTS):
        return body
    try:
        completed = assemble(body)
        return body if completed is None else orjson.dumps(completed)
    except (_Unreadable, RecursionError, TypeError, ValueError, AttributeError):
        return body  # orjson reads deeper than it writes; pieces may be of unexpected types


def assemble(body: bytes) -> Object | None:
    """Join the chunks of a stream; None if it holds no chunk of a completion."""
    result: Object = {}
    choices: dict[int, Object] = {}
    for data in events(body):
        if data == _DONE:
            break
        chunk = _object(data)
        parts = chunk.pop("choices", None)
        for part in parts if isinstance(parts, list) else ():
            _add_choice(choices, part)
        _add_top(result, chunk)
    kind = str(result.get("object"))
    if kind not in _OBJECTS and not choices:
        return None
    result["object"] = _OBJECTS.get(kind, kind)
    result["choices"] = [_completed(choices[index]) for index in sorted(choices)]
    return result


def events(body: bytes) -> Iterator[bytes]:
    """The data of each event; comments and other fields are dropped."""
    lines = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data: list[bytes] = []
    for line in lines.split(b"\n")[:-1]:
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            data.append(b"")


def _object(data: bytes) -> Object:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _Unreadable("an event is not JSON") from error
    if not isinstance(chunk, dict):
        raise _Unreadable("an event is not an object")
    return chunk


def _add_top(result: Object, chunk: Object) -> None:
    for name, value in chunk.items():
        if name == "obfuscation":
            continue
        if value is None:
            result.setdefault(name, None)
        elif name not in _FIRST_WINS or result.get(name) is None:
            result[name] = value


def _add_choice(choices: dict[int, Object], part: Any) -> None:
    index = part.get("index", 0) if isinstance(part, dict) else None
    if not isinstance(index, int):
        raise _Unreadable("a choice has no index")
    choice = choices.setdefault(index, {"index": index})
    _merge(choice, part)


def _merge(known: Object, piece: Object) -> None:
    """Add a piece: strings are joined, lists grow, objects merge, the rest is replaced."""
    for name, value in piece.items():
        before = known.get(name)
        if value is None or before is None:
            if value is not None or name not in known:
                known[name] = _first(name, value)
        elif name == "tool_calls" and isinstance(before, list) and isinstance(value, list):
            _merge_calls(before, value)
        elif name in _LAST_WINS:
            known[name] = value
        elif isinstance(before, str) and isinstance(value, str):
            known[name] = value if name == "name" and before == value else before + value
        elif isinstance(before, list) and isinstance(value, list):
            before.extend(value)
        elif isinstance(before, dict) and isinstance(value, dict):
            _merge(before, value)
        else:
            known[name] = _first(name, value)


def _first(name: str, value: Any) -> Any:
    if name != "tool_calls" or not isinstance(value, list):
        return value
    calls: list[Any] = []
    _merge_calls(calls, value)
    return calls


def _merge_calls(calls: list[Any], pieces: list[Any]) -> None:
    for piece in pieces:
        if not isinstance(piece, dict):
            raise _Unreadable("a tool call is not an object")
        index = piece.get("index", len(calls))
        for call in calls:
            if call.get("index") == index:
                _merge(call, piece)
                break
        else:
            calls.append({"index": index, **piece})


def _completed(choice: Object) -> Object:
    """A choice as a unary answer has it: a message in place of the deltas."""
    delta = choice.pop("delta", None)
    if not isinstance(delta, dict):
        return choice
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [_without_index(call) for call in calls]
    message = {"role": "assistant", "content": None, **delta}
    return {"index": choice.pop("index"), "message": message, **choice}


def _without_index(call: Object) -> Object:
    return {name: value for name, value in call.items() if name != "index"}
