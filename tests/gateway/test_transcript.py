"""Streams assembled into the object that a unary call gives."""

import base64
import random
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transcript import completed_response

TOP = {"id": "chatcmpl-1", "created": 1, "model": "m"}
texts = st.text(max_size=60)


def sse(*chunks: dict[str, Any], end: bytes = b"\n\n", done: bool = True) -> bytes:
    lines = [b"data: " + orjson.dumps(chunk) + end for chunk in chunks]
    return b"".join(lines) + (b"data: [DONE]" + end if done else b"")


def chat(index: int, delta: dict[str, Any], **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None, **fields}
    return {**TOP, "object": "chat.completion.chunk", "choices": [choice]}


def pieces(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 5)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(
    contents=st.lists(texts, min_size=1, max_size=3),
    arguments=st.lists(texts, max_size=2),
    end=st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_what_was_split_into_events_comes_back(
    contents: list[str], arguments: list[str], end: bytes, seed: int
) -> None:
    rng = random.Random(seed)
    queues: list[list[dict[str, Any]]] = []
    for index, content in enumerate(contents):
        events = [chat(index, {"role": "assistant", "content": ""})]
        events += [chat(index, {"content": piece}) for piece in pieces(content, rng)]
        for number, text in enumerate(arguments):
            head = {"index": number, "id": f"c{number}", "type": "function",
                    "function": {"name": "f", "arguments": ""}}  # fmt: skip
            events.append(chat(index, {"tool_calls": [head]}))
            events += [
                chat(index, {"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
                for piece in pieces(text, rng)
            ]
        events.append(chat(index, {}, finish_reason="stop"))
        queues.append(events)
    mixed = []
    while any(queues):
        mixed.append(rng.choice([queue for queue in queues if queue]).pop(0))
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    mixed.append({**TOP, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": text}}
        for number, text in enumerate(arguments)
    ]
    expected = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content}
            | ({"tool_calls": calls} if calls else {}),
            "finish_reason": "stop",
        }
        for index, content in enumerate(contents)
    ]
    result = orjson.loads(completed_response(sse(*mixed, end=end)))
    assert result == {**TOP, "object": "chat.completion", "usage": usage, "choices": expected}


def test_log_probabilities_and_reasoning_are_joined() -> None:
    one = {"content": [{"token": "a", "logprob": -0.1}]}
    two = {"content": [{"token": "b", "logprob": -0.2}]}
    body = sse(
        chat(0, {"role": "assistant", "content": "a", "reasoning_content": "be"}, logprobs=one),
        chat(0, {"content": "b", "reasoning_content": "cause"}, logprobs=two),
    )
    (choice,) = orjson.loads(completed_response(body))["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "ab", "reasoning_content": "because"
    }  # fmt: skip
    assert [item["token"] for item in choice["logprobs"]["content"]] == ["a", "b"]


def test_text_completions() -> None:
    base = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    body = sse(
        {**base, "choices": [{"index": 0, "text": "to ", "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "text": "be", "finish_reason": "length"}]},
    )
    expected = [{"index": 0, "text": "to be", "finish_reason": "length"}]
    assert orjson.loads(completed_response(body)) == {**base, "choices": expected}


def test_a_cut_stream_keeps_what_came() -> None:
    body = sse(chat(0, {"role": "assistant", "content": "half"}), done=False)
    (choice,) = orjson.loads(completed_response(body + b'data: {"choi'))["choices"]
    assert choice["message"]["content"] == "half"
    assert choice["finish_reason"] is None


def test_an_error_event_is_kept_beside_the_text() -> None:
    error = {"error": {"message": "gone", "type": "upstream_error", "code": None}}
    result = orjson.loads(completed_response(sse(chat(0, {"content": "a"}), error, done=False)))
    assert result["error"] == error["error"]
    assert result["choices"][0]["message"]["content"] == "a"


def test_comments_and_several_data_lines() -> None:
    body = b': ping\n\nevent: x\ndata: {"object":"text_completion",\ndata: "choices":[]}\n\n'
    assert orjson.loads(completed_response(body)) == {"object": "text_completion", "choices": []}


def test_what_is_no_completion_stream_is_kept_as_it_came() -> None:
    for body in (
        b"", b'{"object":"chat.completion"}', b"data: not json\n\n", b"data: [1]\n\n",
        b'data: {"type":"message_start"}\n\n', b"<html>", b"data: {}",
        b'data: {"choices":[{"index":"x"}]}\n\n',
    ):  # fmt: skip
        assert completed_response(body) == body


@given(st.binary(max_size=200))
def test_no_bytes_crash_it(noise: bytes) -> None:
    completed_response(noise)
    completed_response(b"data: " + base64.b64encode(noise) + b"\n\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "index", "delta", "tool_calls", "content", "object"]), inner
        )
    ),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=4))
def test_no_json_crashes_it(values: list[Any]) -> None:
    body = b"".join(b"data: " + orjson.dumps(value) + b"\n\n" for value in values)
    assert isinstance(completed_response(body), bytes)


def test_an_event_deeper_than_json_is_written_is_kept_as_it_came():
    deep = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"x":%b}]}\n\n' % (
        b"[" * 300 + b"]" * 300
    )
    assert completed_response(deep) == deep
