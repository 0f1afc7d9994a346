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
CLOSING_CHUNKS = 8
CLOSING_BYTES = 16 * 1024
EVENT_BYTES = 16 * 1024 * 1024
_SUSPECT = re.compile(rb'data: ?[^{ ]|"error"|"choices": ?\[\]')


@dataclass(slots=True)
class Ending:
    """What the last events of a stream said."""

    usage: Usage | None = None
    finish_reason: str | None = None


class StreamWatch:
    """Follows one stream. `feed` bytes as they come; what it returns is for the client.

    Attributes:
        done: the upstream said `[DONE]`; whatever follows is ignored.
        usage_event: the usage event that was held back.
        held: bytes for the log that are in memory (the caller moves them away when many).
    """

    def __init__(self) -> None:
        self.done = False
        self.usage_event: dict[str, Any] | None = None
        self.held: list[bytes] = []
        self.held_bytes = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Whole events that may go to the client now, maybe none. Raises on an error event."""
        if self._rest:
            chunk = self._rest + chunk
            self._rest = b""
        if not chunk.endswith(b"\n\n"):
            chunk = self._keep_rest(chunk)
        if not chunk or self.done:
            return b""
        self.held.append(chunk)
        self.held_bytes += len(chunk)
        if _SUSPECT.search(chunk) is None:
            return chunk
        return b"".join(event for event in split_events(chunk) if self._passes(event))

    def take_held(self) -> bytes:
        """Move all but the closing events out of memory."""
        data = self.held_data()
        boundary = BOUNDARY.search(data, max(0, len(data) - CLOSING_BYTES))
        cut = boundary.end() if boundary else 0
        self.held = [data[cut:]] if cut < len(data) else []
        self.held_bytes = len(data) - cut
        return data[:cut]

    def held_data(self) -> bytes:
        """What is still in memory, in order."""
        return b"".join(self.held)

    def ending(self) -> Ending:
        """Usage and finish reason, from the last events."""
        ending = Ending()
        if self.usage_event is not None:
            ending.usage = read_usage(self.usage_event.get("usage"))
        for chunk in reversed(self.held[-CLOSING_CHUNKS:]):
            for event in reversed(list(split_events(chunk))):
                parsed = event_json(event)
                if parsed is None:
                    continue
                ending.usage = ending.usage or read_usage(parsed.get("usage"))
                ending.finish_reason = ending.finish_reason or finish_reason_of(parsed)
            if ending.finish_reason and ending.usage:
                break
        return ending

    def _keep_rest(self, chunk: bytes) -> bytes:
        end = 0
        for boundary in BOUNDARY.finditer(chunk):
            end = boundary.end()
        self._rest = chunk[end:]
        if len(self._rest) > EVENT_BYTES:
            raise UpstreamBroken("The upstream sent an event that never ends.")
        return chunk[:end]

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
        if parsed.get("usage") and parsed.get("choices") == []:
            self.usage_event = parsed
            return False
        return True


def require_end(watch: StreamWatch, ending: Ending) -> None:
    """Raise UpstreamCut unless the stream really ended: a finish reason, then `[DONE]`."""
    if not watch.done or ending.finish_reason is None:
        raise UpstreamCut("The upstream's stream stopped before its end.")


def stream_head(out: bytes) -> str | None:
    """The id that the upstream gave the stream, from its first events."""
    for event in split_events(out):
        parsed = event_json(event)
        if parsed is not None:
            identifier = parsed.get("id")
            return identifier if isinstance(identifier, str) else None
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
