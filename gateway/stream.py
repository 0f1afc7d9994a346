"""Server-sent events on their way through: forwarded as they arrive, and watched for their end.

Only whole events go out (WHATWG HTML, section 9.2). Three kinds stay here: `[DONE]`, which goes out
when the request is in the log; the usage event, which the gateway always asks for; and an error in
mid stream. Everything else passes untouched, and unparsed: a search for a few bytes tells whether
an event needs a closer look.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import UpstreamBroken, UpstreamCut
from gateway.events import BOUNDARY, event_data, event_json, split_events
from gateway.usage import Usage, read_usage

DONE = b"data: [DONE]\n\n"
HELD_BYTES = 64 * 1024
EDGE_BYTES = 3  # as much of a boundary as can stand before the bytes that complete it
EVENT_BYTES = 16 * 1024 * 1024
_SUSPECT = re.compile(rb'data: ?[^{ ]|"error"|"choices": ?\[\]|"finish_reason": ?"|"usage": ?\{')


@dataclass(slots=True)
class Ending:
    """What a stream has said of its end so far."""

    usage: Usage | None = None
    finish_reason: str | None = None


class StreamWatch:
    """Follows one stream. `feed` bytes as they come; what it returns is for the client.

    Attributes:
        done: the upstream said `[DONE]`; whatever follows is ignored.
        usage_event: the usage event that was held back.
        ending: usage and finish reason, as far as they were told.
        held: bytes for the log that are in memory (the caller moves them away when many).
    """

    def __init__(self) -> None:
        self.done = False
        self.usage_event: dict[str, Any] | None = None
        self.held: list[bytes] = []
        self.held_bytes = 0
        self.ending = Ending()
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._edge = b""

    def feed(self, chunk: bytes) -> bytes:
        """Whole events that may go to the client now, maybe none. Raises on an error event."""
        if self._rest or not chunk.endswith(b"\n\n"):
            chunk = self._whole_events(chunk)
        if not chunk or self.done:
            return b""
        self.held.append(chunk)
        self.held_bytes += len(chunk)
        if _SUSPECT.search(chunk) is None:
            return chunk
        return b"".join(event for event in split_events(chunk) if self._passes(event))

    def take_held(self) -> bytes:
        """Move it out of memory."""
        data, self.held, self.held_bytes = self.held_data(), [], 0
        return data

    def held_data(self) -> bytes:
        """What is still in memory, in order."""
        return b"".join(self.held)

    def _whole_events(self, chunk: bytes) -> bytes:
        """Everything up to the last boundary; the rest waits. Only what is new is searched."""
        searched = self._edge + chunk
        end = max((found.end() for found in BOUNDARY.finditer(searched)), default=0)
        if end <= len(self._edge):  # a boundary ends in the new bytes, or there is none
            self._keep(chunk)
            return b""
        cut = end - len(self._edge)
        whole = b"".join([*self._rest, chunk[:cut]])
        self._rest, self._rest_bytes, self._edge = [], 0, b""
        if cut < len(chunk):
            self._keep(chunk[cut:])
        return whole

    def _keep(self, piece: bytes) -> None:
        self._rest.append(piece)
        self._rest_bytes += len(piece)
        self._edge = (self._edge + piece)[-EDGE_BYTES:]
        if self._rest_bytes > EVENT_BYTES:
            raise UpstreamBroken("The upstream sent an event that never ends.")

    def _passes(self, event: bytes) -> bool:
        if self.done or event_data(event) == b"[DONE]":
            self.done = True
            return False
        parsed = event_json(event)
        if parsed is None:
            if event_data(event):
                raise UpstreamBroken("The upstream sent an event that is not JSON.")
            return True
        if parsed.get("error") and not parsed.get("choices"):
            raise UpstreamBroken(_error_message(parsed["error"]), code="upstream_stream_error")
        self._note(parsed)
        if isinstance(parsed.get("usage"), dict) and parsed.get("choices") == []:
            self.usage_event = parsed
            return False
        return True

    def _note(self, event: Mapping[str, Any]) -> None:
        usage = read_usage(event.get("usage"))
        self.ending.usage = usage or self.ending.usage
        self.ending.finish_reason = finish_reason_of(event) or self.ending.finish_reason


def require_end(watch: StreamWatch) -> None:
    """Raise UpstreamCut unless the stream really ended: a finish reason, then `[DONE]`."""
    if not watch.done or watch.ending.finish_reason is None:
        raise UpstreamCut("The upstream's stream stopped before its end.")


def stream_head(out: bytes) -> str | None:
    """The id that the upstream gave the stream, from its first events."""
    for event in split_events(out):
        parsed = event_json(event)
        identifier = parsed.get("id") if parsed is not None else None
        if isinstance(identifier, str):
            return identifier
    return None


def finish_reason_of(parsed: Mapping[str, Any]) -> str | None:
    """The first finish reason among an answer's, or a chunk's, choices."""
    choices = parsed.get("choices")
    if not isinstance(choices, list):
        return None
    for choice in choices:
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if isinstance(reason, str):
            return reason
    return None


def _error_message(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "The upstream failed in mid stream.")[:2000]
