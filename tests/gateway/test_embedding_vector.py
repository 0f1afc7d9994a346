"""The stored form of a vector: it comes back as it was, or not at all."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.embedding_vector import HEADER_BYTES, Embedding, NotAnEmbedding, decode, encode

floats = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=64)
embeddings = st.builds(
    Embedding,
    vector=floats.map(lambda values: struct.pack(f"<{len(values)}f", *values)),
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
)


@given(embeddings, st.integers(1, 2**40))
def test_what_was_encoded_is_decoded(embedding: Embedding, expires: int):
    stored = encode(embedding, expires)
    assert len(stored) == HEADER_BYTES + 4 * embedding.dimensions
    assert decode(stored, dimensions=embedding.dimensions, now=expires - 1) == embedding
    assert decode(stored, dimensions=embedding.dimensions, now=expires) is None


@given(embeddings, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(embedding: Embedding, position: int, change: int):
    stored = bytearray(encode(embedding, 2**40))
    stored[position % len(stored)] ^= change
    with pytest.raises(NotAnEmbedding):
        decode(bytes(stored), dimensions=embedding.dimensions, now=0)


@given(embeddings, st.data())
def test_another_length_is_noticed(embedding: Embedding, data: st.DataObject):
    stored = encode(embedding, 2**40)
    cut = data.draw(st.integers(0, len(stored) - 1))
    for changed in (stored[:cut], stored + b"\0"):
        with pytest.raises(NotAnEmbedding):
            decode(changed, dimensions=embedding.dimensions, now=0)
    with pytest.raises(NotAnEmbedding):
        decode(stored, dimensions=embedding.dimensions + 1, now=0)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(stored: bytes):
    with pytest.raises(NotAnEmbedding):
        decode(stored, dimensions=8, now=0)


@given(st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=32), st.integers(1, 4))
def test_a_shortened_vector_has_length_one(values: list[float], dimensions: int):
    full = Embedding(struct.pack(f"<{len(values)}f", *values), 3)
    short = np.frombuffer(full.shortened(dimensions).vector, "<f4")
    head = np.array(values[:dimensions], "<f4")
    if dimensions == len(values) or not float(np.linalg.norm(head)) > 1e-6:
        return
    assert len(short) == dimensions
    assert math.isclose(float(np.linalg.norm(short)), 1, rel_tol=1e-5)
    assert np.allclose(short * np.linalg.norm(head), head, rtol=1e-4, atol=1e-6)


def test_its_own_length_changes_nothing():
    full = Embedding(struct.pack("<2f", 3, 4), 1)
    assert full.shortened(2) is full
