"""Spool segments on disk: framed, checksummed records in append-only files, and how to read them.

A segment is `<writer>-<sequence>.seg`: eight bytes of magic, then records. A record is a header
(marker, kind, three lengths, CRC-32 of all the rest) and three payloads: the record as JSON, the
request body and the response body, byte for byte. The marker starts with 0xF5, which is never part
of valid UTF-8, so that a reader finds the next whole record after a damaged one.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import Any

import orjson

MAGIC = b"LLMSPL1\n"
MARKER = b"\xf5REC"
SUFFIX = ".seg"
_HEADER = Struct("<4sBIIII")
_CHECKED = Struct("<BIII")
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """What a record says of its request: that it began, or how it ended."""

    INTENT = 1
    FINAL = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One whole record. `meta` holds the fields of `RequestRecord`; bodies are raw bytes.

    `offset` is where it starts in what was scanned, `size` its length there, both in bytes.
    """

    kind: Kind
    meta: dict[str, Any]
    request: bytes
    response: bytes
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are not a whole record. `torn` is an unfinished last write, not corruption."""

    offset: int
    data: bytes
    torn: bool


def encode(kind: Kind, meta: bytes, request: bytes = b"", response: bytes = b"") -> list[bytes]:
    """The buffers of one record, in the order in which they are written."""
    lengths = (len(meta), len(request), len(response))
    crc = zlib.crc32(response, zlib.crc32(request, zlib.crc32(meta, _seed(kind, lengths))))
    return [_HEADER.pack(MARKER, kind, *lengths, crc), meta, request, response]


def segment_name(writer: str, sequence: int) -> str:
    """File name of a writer's segment; names of one writer sort in the order of writing."""
    return f"{writer}-{sequence:08d}{SUFFIX}"


def writer_of(path: Path) -> tuple[str, int]:
    """Writer and sequence number, back from a segment's name."""
    writer, _, sequence = path.stem.rpartition("-")
    return writer, int(sequence)


def read_segment(path: Path) -> Iterator[Entry | Damage]:
    """Every whole record of a segment in order, and every stretch that is not one."""
    yield from scan(path.read_bytes())


def scan(data: bytes) -> Iterator[Entry | Damage]:
    """`read_segment` on bytes already in memory."""
    offset = len(MAGIC) if data.startswith(MAGIC) else 0
    while offset < len(data):
        found = _record_at(data, offset)
        if found is not None:
            entry, offset = found
            yield entry
            continue
        following = _next_whole_record(data, offset + 1)
        yield Damage(offset, data[offset:following], torn=following == len(data))
        offset = following


def _next_whole_record(data: bytes, start: int) -> int:
    position = data.find(MARKER, start)
    while position != -1:
        if _record_at(data, position) is not None:
            return position
        position = data.find(MARKER, position + 1)
    return len(data)


def _record_at(data: bytes, offset: int) -> tuple[Entry, int] | None:
    if len(data) - offset < HEADER_BYTES:
        return None
    marker, kind, *lengths, crc = _HEADER.unpack_from(data, offset)
    start = offset + HEADER_BYTES
    end = start + sum(lengths)
    if marker != MARKER or kind not in (Kind.INTENT, Kind.FINAL) or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[start:end], _seed(kind, tuple(lengths))) != crc:
        return None
    request_at, response_at = start + lengths[0], start + lengths[0] + lengths[1]
    try:
        meta = orjson.loads(data[start:request_at])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(meta, dict):
        return None
    bodies = data[request_at:response_at], data[response_at:end]
    return Entry(Kind(kind), meta, *bodies, offset, end - offset), end


def _seed(kind: int, lengths: tuple[int, ...]) -> int:
    return zlib.crc32(_CHECKED.pack(kind, *lengths))
