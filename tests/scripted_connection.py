"""One connection of the scripted upstream: reads requests and answers them, byte by byte."""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import httptools
import orjson

from tests.scripted_answers import (
    Answer,
    Script,
    UnknownScript,
    error_body,
    parse_script,
    stream_payloads,
    unary_body,
)
from tests.scripted_record import Call, Incoming, Recorder

ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
JSON_HEAD = "application/json"
SSE_HEAD = "text/event-stream; charset=utf-8"
HUGE_HEADERS = "".join(f"x-filler-{index}: {'f' * 1000}\r\n" for index in range(128))
HIGH_WATER = 64 * 1024
MODELS = orjson.dumps(
    {"object": "list", "data": [{"id": "chat", "object": "model", "owned_by": "scripted"}]}
)


class Stop(Exception):
    """The script ends the connection here."""


class Connection(asyncio.Protocol):
    """Reads requests off one connection and answers them one after the other."""

    def __init__(self, recorder: Recorder, live: "set[Connection]") -> None:
        self.recorder = recorder
        self.live = live
        self.number = recorder.count("connections")
        self.parser = httptools.HttpRequestParser(self)
        self.incoming = Incoming()
        self.waiting: deque[Incoming] = deque()
        self.task: asyncio.Task[None] | None = None
        self.call: Call | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.live.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.live.discard(self)
        self.writable.set()
        if self.call is not None and not self.call.finished:
            self.call.aborted = True
            self.call.ended = time.monotonic()
            self.recorder.count("aborted")
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.recorder.count("unreadable")
            self.transport.write(head(400, JSON_HEAD, length=0) + str(error).encode())
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self.incoming.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        pair = (name.decode("latin-1").lower(), value.decode("latin-1"))
        self.incoming.headers.append(pair)

    def on_body(self, body: bytes) -> None:
        self.incoming.pieces.append(body)

    def on_message_complete(self) -> None:
        incoming, self.incoming = self.incoming, Incoming()
        incoming.method = self.parser.get_method().decode()
        if self.task is None and self._answer_fixed(incoming):
            return
        self.waiting.append(incoming)
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._work())

    def _answer_fixed(self, incoming: Incoming) -> bool:
        """The short way: constant bytes, written at once, nothing kept."""
        if incoming.method != "POST" or len(incoming.pieces) != 1:
            return False
        try:
            body = orjson.loads(incoming.pieces[0])
            model = body["model"]
        except (ValueError, TypeError, KeyError):
            return False
        if not isinstance(model, str) or not model.startswith("fixed") or "," in model:
            return False
        endpoint = ENDPOINTS.get(incoming.path, "chat")
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.recorder.counts["fixed"] += 1
        self.transport.write(fixed_answer(model, endpoint, bool(body.get("stream")), usage))
        return True

    async def _work(self) -> None:
        try:
            while self.waiting:
                await self._respond(self.waiting.popleft())
        except Stop:
            self.transport.close()
        finally:
            self.task = None

    async def _respond(self, incoming: Incoming) -> None:
        raw = b"".join(incoming.pieces)
        if incoming.path.startswith("/_"):
            report = self.recorder.report(incoming.path)
            self.transport.write(head(200, JSON_HEAD, length=len(report)) + report)
            return
        call = self.recorder.record(self.number, incoming, raw)
        self.call = call
        await Exchange(self, call).answer()
        call.finished, call.ended = True, time.monotonic()
        self.call = None
        if (call.header("connection") or "").lower() == "close":
            raise Stop


class Exchange:
    """One request's answer, on its way out."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self.connection = connection
        self.call = call
        self.script = Script(frozenset(), {})
        self.body_left: int | None = None
        self.chunked = False

    async def answer(self) -> None:
        """Answer as the script says."""
        endpoint = ENDPOINTS.get(self.call.path)
        if self.call.method == "GET" and self.call.path in ("/v1/models", "/health"):
            await self._whole(200, MODELS)
        elif endpoint is None or self.call.method != "POST":
            await self._whole(404, error_body(404, f"Nothing at {self.call.path}", "not_found"))
        elif not isinstance(self.call.body, dict):
            await self._whole(400, error_body(400, "The body is no JSON object"))
        else:
            await self._scripted(endpoint, self.call.body)

    async def _scripted(self, endpoint: str, body: dict[str, Any]) -> None:
        try:
            self.script = parse_script(self.call.script)
        except UnknownScript as error:
            await self._whole(404, error_body(404, str(error), "model_not_found"))
            return
        self.body_left = self.script.numbers.get("cut-bytes")
        await asyncio.sleep(self.script.number("slow-ms", 0) / 1000)
        if await self._failed():
            return
        answer = Answer(self.script, endpoint, self.call.number, body, self.call.nonce)
        if endpoint != "embeddings":
            self.call.output_tokens = answer.token_count() * answer.choices
        if body.get("stream") and endpoint != "embeddings":
            await self._stream(answer)
        elif "not-json" in self.script:
            await self._whole(200, b"<html><body>It works!</body></html>", kind="text/html")
        else:
            await self._whole(200, unary_body(answer))

    async def _failed(self) -> bool:
        """Failures before an answer; True if one was written."""
        if "refuse" in self.script:
            self._finish()
            raise Stop
        if "reset" in self.script:
            self._finish()
            self._reset()
            raise Stop
        if "not-http" in self.script:
            await self._write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            self._finish()
            raise Stop
        if "redirect" in self.script:
            await self._whole(307, b"", extra="location: http://127.0.0.1:9/v1/models\r\n")
            return True
        status = self.script.number("status", 200)
        if status != 200:
            extra = "retry-after: 1\r\n" if status in (429, 503) else ""
            await self._whole(status, error_body(status, f"scripted {status}"), extra=extra)
            return True
        return False

    async def _whole(
        self, status: int, body: bytes, *, kind: str = JSON_HEAD, extra: str = ""
    ) -> None:
        length = None if "until-close" in self.script else len(body)
        await self._head(status, kind, length=length, extra=extra)
        await self._body(body)
        if length is None:
            self._finish()
            raise Stop

    async def _stream(self, answer: Answer) -> None:
        self.chunked = "until-close" not in self.script
        await self._head(200, SSE_HEAD, chunked=self.chunked)
        pause = self.script.number("paced-ms", 0) / 1000
        for payload in self._payloads(answer):
            await self._limit_events()
            if pause and self.call.events:
                await asyncio.sleep(pause)
            await self._event(payload)
        if not self.chunked:
            self._finish()
            raise Stop
        await self._write(b"0\r\n\r\n")

    def _payloads(self, answer: Answer) -> Iterator[bytes]:
        failing_at = self.script.numbers.get("error-event")
        if "not-json" in self.script:
            yield b"<html>"
        for index, payload in enumerate(stream_payloads(answer)):
            if index == failing_at:
                yield error_body(500, "scripted failure in mid stream")
                return
            yield payload

    async def _limit_events(self) -> None:
        if self.call.events == self.script.number("stall-after", -1):
            await asyncio.Event().wait()
        if self.call.events == self.script.number("cut-after", -1):
            self._finish()
            raise Stop

    async def _event(self, payload: bytes) -> None:
        end = b"\r\n\r\n" if "crlf" in self.script else b"\n\n"
        comment = b": still here" + end if "comments" in self.script else b""
        await self._body(comment + b"data: " + payload + end)
        self.call.events += 1

    async def _head(
        self,
        status: int,
        kind: str,
        *,
        length: int | None = None,
        chunked: bool = False,
        extra: str = "",
    ) -> None:
        self.call.status = status
        if "huge-headers" in self.script:
            extra += HUGE_HEADERS
        await self._write(head(status, kind, length=length, chunked=chunked, extra=extra))

    async def _body(self, data: bytes) -> None:
        if self.body_left is not None:
            data, whole = data[: self.body_left], data
            self.body_left -= len(data)
            if len(data) < len(whole):
                await self._write(_chunk(data) if self.chunked and data else data)
                self._finish()
                raise Stop
        await self._write(_chunk(data) if self.chunked else data)

    async def _write(self, data: bytes) -> None:
        size = self.script.number("slice", 0) or len(data) or 1
        for start in range(0, len(data), size):
            await self.connection.writable.wait()
            piece = data[start : start + size]
            self.connection.transport.write(piece)
            self.call.sent += len(piece)
            if size < len(data):
                await asyncio.sleep(0)

    def _finish(self) -> None:
        self.call.finished, self.call.ended = True, time.monotonic()

    def _reset(self) -> None:
        sock = self.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


def head(
    status: int, kind: str, *, length: int | None = None, chunked: bool = False, extra: str = ""
) -> bytes:
    """A response's head; with neither length nor chunks the connection's end ends the body."""
    framing = "connection: close\r\n"
    if chunked:
        framing = "transfer-encoding: chunked\r\n"
    elif length is not None:
        framing = f"content-length: {length}\r\n"
    line = f"HTTP/1.1 {status} Scripted\r\ncontent-type: {kind}\r\n"
    return f"{line}{framing}{extra}\r\n".encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(maxsize=64)
def fixed_answer(model: str, endpoint: str, stream: bool, usage: bool) -> bytes:
    """Head and body of the constant answer of `fixed=N`."""
    count = parse_script(model).number("fixed", 8)
    script = Script(frozenset(), {"tokens": count})
    body = {"model": model, "stream_options": {"include_usage": usage}, "input": "fixed"}
    answer = Answer(script, endpoint, 0, body)
    if not stream:
        whole = unary_body(answer)
        return head(200, JSON_HEAD, length=len(whole)) + whole
    events = [_chunk(b"data: " + payload + b"\n\n") for payload in stream_payloads(answer)]
    return head(200, SSE_HEAD, chunked=True) + b"".join(events) + b"0\r\n\r\n"
