"""What the scripted upstream answers: the words that a model name may hold, and the bodies.

A model name is a script: words with commas between them, each `word`, `word=N` or `word-N`, such as
`chat,tokens=64,paced-ms=20`. The words, by what they change:

    what is said
        chat              nothing special (so is `embed`); a name needs at least one word
        echo              the content is the last user message, in one piece a word
        tokens=N          N content tokens, one event each (8)
        big-bytes=N       the content's length in bytes, spread over the tokens
        tool-call         a call of the first tool of the request instead of content
        timestamp         every content token is the time of its writing, monotonic nanoseconds
        fixed=N           constant prebuilt answer of N tokens, nothing recorded: for benchmarks
    usage
        no-usage          never any usage
        usage-zero        usage with zeros
        usage-in-last-choice   a stream's usage stands in the event with the finish reason
        cached=N, reasoning=N  the details of usage
    time
        slow-ms=N         wait before the first byte of the answer
        paced-ms=N        wait before each further event of a stream
        stall-after=K     send K events (0: the head only), then nothing, with the connection open
    framing
        slice=N           N bytes a write
        crlf              events end with CR LF CR LF
        comments          a comment line goes before every event
        until-close       no length and no chunks: the body ends with the connection
        huge-headers      128 KiB of response headers
    failure
        status=N          that status, with an error body in OpenAI's shape
        redirect          307 to another address
        not-json          200 and a page of HTML; in a stream an event that is not JSON
        not-http          bytes that are no HTTP at all
        refuse            close before the first byte (for a refused connection, close the server)
        reset             TCP reset before the first byte
        cut-after=K       close after K events of a stream, in the middle of the body
        cut-bytes=N       close after N bytes of the answer's body
        error-event=K     after K events one error event, then the end without [DONE]
        no-done, done-twice    the stream's end marker is missing, or comes twice

A word that is not in this list gives 404 `model_not_found`, as does an empty name.

Content is deterministic: token i is `w<i> `, or `<nonce>.<i> ` where the request holds a nonce
(text like `nonce-7f3a`, anywhere in its body), so that answers which got crossed are seen.
"""

import base64
import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import orjson

CREATED = 1_700_000_000
DEFAULT_TOKENS = 8


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLAGS = _words(
    "chat embed echo tool-call timestamp no-usage usage-zero usage-in-last-choice crlf comments"
    " until-close huge-headers redirect not-json not-http refuse reset no-done done-twice"
)
NUMBERS = _words(
    "tokens big-bytes fixed cached reasoning slow-ms paced-ms stall-after slice status cut-after"
    " cut-bytes error-event"
)
_WORD = re.compile(r"([a-z-]+?)(?:[=-](\d+))?")
_NONCE = re.compile(rb"nonce-[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*")


class UnknownScript(ValueError):
    """The model name has a word that is not in the list."""


@dataclass(frozen=True, slots=True)
class Script:
    """The words of a model name: those without a number, and those with one."""

    flags: frozenset[str]
    numbers: dict[str, int]

    def __contains__(self, word: str) -> bool:
        return word in self.flags or word in self.numbers

    def number(self, word: str, default: int) -> int:
        """The number that stands with `word`, or `default`."""
        return self.numbers.get(word, default)


def parse_script(model: str) -> Script:
    """Read a model name; raises UnknownScript with the word that is not known."""
    flags: set[str] = set()
    numbers: dict[str, int] = {}
    for word in model.split(","):
        match = _WORD.fullmatch(word)
        name, number = match.groups() if match else (word, None)
        if number is not None and name in NUMBERS:
            numbers[name] = int(number)
        elif number is None and name in FLAGS:
            flags.add(name)
        else:
            raise UnknownScript(f"The model `{model}` does not exist ({word!r} is no script word)")
    return Script(frozenset(flags), numbers)


def find_nonce(raw: bytes) -> str | None:
    """The first `nonce-...` in a request's body."""
    match = _NONCE.search(raw)
    return match.group().decode() if match else None


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that an answer is made from.

    Attributes:
        number: running number of the request at this upstream.
        endpoint: `chat`, `completions`, `embeddings` or `responses`.
    """

    script: Script
    endpoint: str
    number: int
    body: dict[str, Any]
    nonce: str | None = None

    @property
    def answer_id(self) -> str:
        """As vLLM does: the request's own id where it gives one."""
        prefix = "chatcmpl" if self.endpoint == "chat" else "cmpl"
        return f"{prefix}-{self.body.get('request_id') or self.number}"

    @property
    def choices(self) -> int:
        """How many choices were asked for."""
        asked = self.body.get("n")
        return asked if isinstance(asked, int) and asked > 0 else 1

    def tokens(self) -> Iterator[str]:
        """The pieces of the content, each one token and one event of a stream."""
        if "echo" in self.script:
            yield from re.findall(r"\s*\S+\s*$|\s*\S+", _last_text(self.body)) or [""]
            return
        count = self.script.number("tokens", DEFAULT_TOKENS)
        big = self.script.number("big-bytes", 0)
        for index in range(count):
            yield self._token(index, count, big)

    def _token(self, index: int, count: int, big: int) -> str:
        if "timestamp" in self.script:
            return f"{monotonic_ns()} "
        word = f"{self.nonce}.{index} " if self.nonce else f"w{index} "
        if not big:
            return word
        length = big * (index + 1) // count - big * index // count
        return word.ljust(length, "x")[:length]

    def content(self) -> str:
        """The whole content."""
        return "".join(self.tokens())

    def token_count(self) -> int:
        """Output tokens of one choice."""
        if "echo" in self.script:
            return sum(1 for _ in self.tokens())
        return self.script.number("tokens", DEFAULT_TOKENS)

    def usage(self) -> dict[str, Any]:
        """The usage block; input tokens are the words of the request's text."""
        zero = "usage-zero" in self.script
        prompt = 0 if zero else count_words(self.body)
        output = 0 if zero or self.endpoint == "embeddings" else self.token_count() * self.choices
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + output}
        if self.endpoint != "embeddings":
            usage["completion_tokens"] = output
        if "cached" in self.script:
            cached = self.script.number("cached", 0)
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        if "reasoning" in self.script:
            reasoning = self.script.number("reasoning", 0)
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage


def unary_body(answer: Answer) -> bytes:
    """The answer of a call that does not stream."""
    if answer.endpoint == "embeddings":
        return orjson.dumps(_embeddings(answer))
    if answer.endpoint == "responses":
        return orjson.dumps(_response(answer))
    result: dict[str, Any] = {
        "id": answer.answer_id,
        "object": "chat.completion" if answer.endpoint == "chat" else "text_completion",
        "created": CREATED,
        "model": answer.body["model"],
        "choices": [_choice(answer, index) for index in range(answer.choices)],
    }
    if "no-usage" not in answer.script:
        result["usage"] = answer.usage()
    return orjson.dumps(result)


def stream_payloads(answer: Answer) -> Iterator[bytes]:
    """The `data:` payloads of a stream, in order, with their end marker."""
    for choice in range(answer.choices):
        if answer.endpoint == "chat":
            yield _chunk(answer, choice, {"role": "assistant", "content": ""})
        pieces = _tool_deltas(answer) if _calls_tool(answer) else _content_deltas(answer)
        for delta in pieces:
            yield _chunk(answer, choice, delta)
        last = choice == answer.choices - 1 and "usage-in-last-choice" in answer.script
        yield _chunk(answer, choice, {}, finish=_finish(answer), usage=last)
    options = answer.body.get("stream_options") or {}
    quiet = {"no-usage", "usage-in-last-choice"} & answer.script.flags
    if options.get("include_usage") and not quiet:
        yield orjson.dumps(_envelope(answer) | {"choices": [], "usage": answer.usage()})
    if "no-done" not in answer.script:
        yield b"[DONE]"
    if "done-twice" in answer.script:
        yield b"[DONE]"


def error_body(status: int, message: str, code: str | None = None) -> bytes:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return orjson.dumps({"error": error})


def count_words(body: dict[str, Any]) -> int:
    """Words of all messages, of the prompt or of the input, which stand for input tokens."""
    messages = [message.get("content") for message in body.get("messages") or ()]
    return len(" ".join(_texts([*messages, body.get("prompt"), body.get("input")])).split())


def embedding(text: str, dimensions: int) -> list[float]:
    """A vector that depends on the text alone, exact in 32-bit floats."""
    length = -(-dimensions // 32) * 32
    stream = b"".join(
        hashlib.sha256(f"{block}:{text}".encode()).digest() for block in range(length // 32)
    )
    return [byte / 256 - 0.5 for byte in stream[:dimensions]]


def _embeddings(answer: Answer) -> dict[str, Any]:
    given = answer.body.get("input")
    texts = given if isinstance(given, list) else [given]
    dimensions = int(answer.body.get("dimensions") or 384)
    vectors: list[Any] = [embedding(str(text), dimensions) for text in texts]
    if answer.body.get("encoding_format") == "base64":
        packed = [struct.pack(f"<{dimensions}f", *vector) for vector in vectors]
        vectors = [base64.b64encode(one).decode() for one in packed]
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    result = {"object": "list", "model": answer.body["model"], "data": data}
    return result if "no-usage" in answer.script else result | {"usage": answer.usage()}


def _response(answer: Answer) -> dict[str, Any]:
    usage = answer.usage()
    part = {"type": "output_text", "text": answer.content(), "annotations": []}
    message = {"type": "message", "id": "msg", "role": "assistant", "content": [part]}
    return {
        "id": f"resp_{answer.number}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "model": answer.body["model"],
        "output": [message | {"status": "completed"}],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
        },
    }


def _choice(answer: Answer, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": index,
        "finish_reason": _finish(answer),
        "logprobs": None,
    }
    if answer.endpoint != "chat":
        return result | {"text": answer.content()}
    message: dict[str, Any] = {"role": "assistant", "content": answer.content()}
    if _calls_tool(answer):
        message = {"role": "assistant", "content": None, "tool_calls": [_tool_call(answer)]}
    return result | {"message": message}


def _envelope(answer: Answer) -> dict[str, Any]:
    chat = answer.endpoint == "chat"
    return {
        "id": answer.answer_id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": CREATED,
        "model": answer.body["model"],
    }


def _chunk(
    answer: Answer,
    choice: int,
    delta: dict[str, Any],
    *,
    finish: str | None = None,
    usage: bool = False,
) -> bytes:
    inner: dict[str, Any] = {"index": choice, "finish_reason": finish, "logprobs": None}
    if answer.endpoint == "chat":
        inner["delta"] = delta
    else:
        inner["text"] = delta.get("content", "")
    result = _envelope(answer) | {"choices": [inner]}
    return orjson.dumps(result | {"usage": answer.usage()} if usage else result)


def _content_deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    return ({"content": token} for token in answer.tokens())


def _tool_deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    call = _tool_call(answer)
    arguments = call["function"]["arguments"]
    head = call | {"index": 0, "function": call["function"] | {"arguments": ""}}
    yield {"tool_calls": [head]}
    for start in range(0, len(arguments), 5):
        piece = {"index": 0, "function": {"arguments": arguments[start : start + 5]}}
        yield {"tool_calls": [piece]}


def _calls_tool(answer: Answer) -> bool:
    return "tool-call" in answer.script and answer.endpoint == "chat"


def _tool_call(answer: Answer) -> dict[str, Any]:
    tools = answer.body.get("tools") or [{"function": {"name": "tool"}}]
    arguments = orjson.dumps({"nonce": answer.nonce, "number": 1}).decode()
    function = {"name": tools[0]["function"]["name"], "arguments": arguments}
    return {"id": f"call_{answer.number}", "type": "function", "function": function}


def _finish(answer: Answer) -> str:
    return "tool_calls" if _calls_tool(answer) else "stop"


def _last_text(body: dict[str, Any]) -> str:
    messages = body.get("messages") or [{"content": body.get("prompt") or body.get("input")}]
    return "".join(_texts([messages[-1].get("content")]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(value.get("text"))
