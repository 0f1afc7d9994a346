"""The segment format: what is written comes back, and damage costs only what it touches."""

from pathlib import Path
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.segment import MAGIC, Damage, Entry, Kind, encode, scan, segment_name, writer_of

Written = tuple[Kind, dict[str, Any], bytes, bytes]

metas = st.dictionaries(
    st.text(max_size=8), st.text(max_size=20) | st.integers(-(2**53), 2**53) | st.none(), max_size=4
)
records = st.tuples(st.sampled_from(Kind), metas, st.binary(max_size=60), st.binary(max_size=60))


def encoded(one: Written) -> bytes:
    kind, meta, request, response = one
    return b"".join(encode(kind, orjson.dumps(meta), request, response))


def whole_record(name: str) -> Written:
    return Kind.FINAL, {"request_id": name}, b"q" * 20, b"r" * 20


def entries(data: bytes) -> list[Written]:
    return [(e.kind, e.meta, e.request, e.response) for e in scan(data) if isinstance(e, Entry)]


@given(st.lists(records, max_size=6))
def test_records_come_back_as_they_were_written(written: list[Written]) -> None:
    assert entries(MAGIC + b"".join(map(encoded, written))) == written


@given(st.lists(records, min_size=1, max_size=4), records, st.data())
def test_places_are_where_the_records_are(
    before: list[Written], one: Written, data: st.DataObject
) -> None:
    content = MAGIC + b"".join(map(encoded, [*before, one]))
    last = [item for item in scan(content) if isinstance(item, Entry)][-1]
    assert content[last.offset : last.offset + last.size] == encoded(one)


def test_a_tail_torn_at_any_byte_costs_only_the_last_record() -> None:
    first: Written = (Kind.FINAL, {"request_id": "a"}, b"question", b"answer \xf5REC \x00")
    last = whole_record("b")
    start = len(MAGIC + encoded(first))
    whole = MAGIC + encoded(first) + encoded(last)
    for end in range(start, len(whole)):
        found = list(scan(whole[:end]))
        assert entries(whole[:end]) == [first]
        damages = [item for item in found if isinstance(item, Damage)]
        assert damages == ([Damage(start, whole[start:end], torn=True)] if end > start else [])
    assert entries(whole) == [first, last]


def test_any_flipped_byte_costs_only_its_record() -> None:
    one, two, three = (whole_record(name) for name in ("1", "2", "3"))
    start, middle = len(MAGIC + encoded(one)), len(encoded(two))
    whole = MAGIC + encoded(one) + encoded(two) + encoded(three)
    for place in range(start, start + middle):
        broken = bytearray(whole)
        broken[place] ^= 0x41
        assert entries(bytes(broken)) == [one, three]
        (damage,) = (item for item in scan(bytes(broken)) if isinstance(item, Damage))
        assert (damage.offset, len(damage.data), damage.torn) == (start, middle, False)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    covered = 0
    for item in scan(data):
        covered += item.size if isinstance(item, Entry) else len(item.data)
    assert covered == len(data) - (len(MAGIC) if data.startswith(MAGIC) else 0)


def test_a_name_tells_writer_and_sequence() -> None:
    assert writer_of(Path(segment_name("0192-ab", 12))) == ("0192-ab", 12)
    assert sorted(segment_name("w", number) for number in (10, 9, 100)) == [
        segment_name("w", number) for number in (9, 10, 100)
    ]
