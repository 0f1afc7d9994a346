"""The stream watch: whatever way the bytes are sliced, the same events go out."""

import time
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamBroken, UpstreamCut
from gateway.events import encode_event, event_json, split_events
from gateway.stream import StreamWatch, require_end

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def chunk(text: str, finish: str | None = None) -> dict:
    return {
        "id": "c1",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }


def stream(texts: list[str], *, newline: bytes = b"\n", usage: bool = True) -> bytes:
    parts = [chunk(text) for text in texts] + [chunk("", "stop")]
    if usage:
        parts.append({"id": "c1", "choices": [], "usage": USAGE})
    data = b"".join(encode_event(part) for part in parts) + b"data: [DONE]\n\n"
    return data.replace(b"\n", newline)


def slices(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@given(
    st.lists(st.text(), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_slicing_changes_nothing(texts, cuts, newline):
    data = stream(texts, newline=newline)
    watch = StreamWatch()
    out = b"".join(watch.feed(piece) for piece in slices(data, cuts))
    sent = [event_json(event) for event in split_events(out)]
    assert sent == [chunk(text) for text in texts] + [chunk("", "stop")]
    require_end(watch)
    ending = watch.ending
    assert ending.finish_reason == "stop"
    assert ending.usage is not None and ending.usage.output_tokens == 2
    assert watch.held_data() == data


@given(st.lists(st.text(max_size=5), max_size=3), st.data())
def test_a_stream_cut_anywhere_has_no_end(texts, draw):
    data = stream(texts)
    end = len(data) - 1  # without its last byte, the last event is not whole
    cut = draw.draw(st.integers(0, end))
    watch = StreamWatch()
    watch.feed(data[:cut])
    with pytest.raises(UpstreamCut):
        require_end(watch)


def test_text_that_looks_like_the_end_is_text():
    text = 'data: [DONE]\n\n"choices":[] {"error": 1}'
    watch = StreamWatch()
    out = watch.feed(encode_event(chunk(text)))
    assert event_json(out) == chunk(text) and not watch.done


@pytest.mark.parametrize("event", [b'data: {"error": {"message": "no"}}\n\n', b"data: <html>\n\n"])
def test_errors_and_nonsense_break_the_stream(event):
    with pytest.raises(UpstreamBroken):
        StreamWatch().feed(encode_event(chunk("a")) + event)


def test_an_event_that_never_ends_is_given_up():
    watch = StreamWatch()
    with pytest.raises(UpstreamBroken):
        for _ in range(20):
            watch.feed(b"x" * 1024 * 1024)


def test_only_the_closing_chunks_stay_in_memory():
    watch = StreamWatch()
    moved = b""
    for index in range(300):
        watch.feed(encode_event(chunk(f"{index} " * 50)))
        if watch.held_bytes > 20_000:
            moved += watch.take_held()
    assert watch.held_bytes < 25_000 and moved
    assert len(list(split_events(moved + watch.held_data()))) == 300


def test_comments_pass():
    watch = StreamWatch()
    assert watch.feed(b": ping\n\n") == b": ping\n\n"
    assert orjson.loads(watch.feed(encode_event(chunk("x")))[6:]) == chunk("x")


def test_a_finish_reason_far_from_the_end_is_remembered():
    watch = StreamWatch()
    watch.feed(encode_event(chunk("x" * 100_000, "tool_calls")))
    watch.take_held()
    for _ in range(20):
        watch.feed(b": keep-alive\n\n")
    watch.feed(b"data: [DONE]\n\n")
    require_end(watch)
    assert watch.ending.finish_reason == "tool_calls"


def test_a_long_event_in_small_pieces_takes_time_in_proportion():
    event = encode_event(chunk("y" * 4_000_000))
    watch = StreamWatch()
    started = time.perf_counter()
    out = b"".join(watch.feed(event[at : at + 4096]) for at in range(0, len(event), 4096))
    assert out == event
    assert time.perf_counter() - started < 1
