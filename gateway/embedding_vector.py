"""An embedding as it is kept: a fixed header, then the vector as little-endian float32.

    magic "LEV1" | flags u32 | dimensions u32 | tokens u32 | expires u64 | crc32 u32 | vector

All integers are little-endian. `expires` is seconds since the epoch, UTC. The checksum covers what
stands before it and the vector. What does not fit its header is no embedding: it is never
repaired, only computed again.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

MAGIC = b"LEV1"
_HEAD = struct.Struct("<4sIIIQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + _CRC.size
_TRUNCATED = 1
_FLAGS = _TRUNCATED
FLOAT_BYTES = 4
MAX_DIMENSIONS = 65536


class NotAnEmbedding(ValueError):
    """The bytes are not an embedding of the wanted length; the message says why."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One vector and what it took.

    Attributes:
        vector: little-endian float32 values.
        tokens: tokens the model read for it.
        truncated: the text was longer than the model reads; its end was left out.
    """

    vector: bytes
    tokens: int
    truncated: bool = False

    @property
    def dimensions(self) -> int:
        """Length of the vector."""
        return len(self.vector) // FLOAT_BYTES

    def shortened(self, dimensions: int) -> "Embedding":
        """Its first `dimensions` values, scaled to length one again.

        The same as OpenAI's `dimensions`; a vector that has this length already is left as it is.
        """
        if dimensions == self.dimensions:
            return self
        head = np.frombuffer(self.vector, "<f4", count=dimensions)
        norm = float(np.linalg.norm(head))
        if norm > 0:
            head = head / np.float32(norm)
        return Embedding(head.astype("<f4").tobytes(), self.tokens, self.truncated)


def encode(embedding: Embedding, expires: int) -> bytes:
    """The bytes to keep; `expires` is seconds since the epoch."""
    flags = _TRUNCATED if embedding.truncated else 0
    head = _HEAD.pack(MAGIC, flags, embedding.dimensions, embedding.tokens, expires)
    return head + _CRC.pack(zlib.crc32(embedding.vector, zlib.crc32(head))) + embedding.vector


def decode(stored: bytes, *, dimensions: int, now: float) -> Embedding | None:
    """What `encode` kept, or None if it has expired at `now`.

    Raises NotAnEmbedding if the bytes are something else, were cut or changed, or are of another
    length than `dimensions`.
    """
    if len(stored) < HEADER_BYTES:
        raise NotAnEmbedding(f"{len(stored)} bytes are shorter than the header")
    magic, flags, length, tokens, expires = _HEAD.unpack_from(stored)
    if magic != MAGIC or flags & ~_FLAGS:
        raise NotAnEmbedding("the header is of another kind")
    if length != dimensions or len(stored) != HEADER_BYTES + FLOAT_BYTES * length:
        raise NotAnEmbedding(f"{len(stored)} bytes do not hold {dimensions} dimensions")
    vector = stored[HEADER_BYTES:]
    (checksum,) = _CRC.unpack_from(stored, _HEAD.size)
    if zlib.crc32(vector, zlib.crc32(stored[: _HEAD.size])) != checksum:
        raise NotAnEmbedding("the checksum does not fit")
    if expires <= now:
        return None
    return Embedding(vector, tokens, bool(flags & _TRUNCATED))
