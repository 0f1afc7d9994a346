"""Keys: one for what is the same text to a reader, others for everything else."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from gateway.embedding_key import KeySpace, normalized

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
spaces = st.builds(KeySpace, names, names, names, st.integers(1, 4))


@given(texts)
def test_normalizing_is_nfc_and_changes_nothing_twice(text: str):
    once = normalized(text)
    assert once == unicodedata.normalize("NFC", text)
    assert normalized(once) == once
    assert normalized(unicodedata.normalize("NFD", text)) == once


def test_composed_and_decomposed_are_one_text_and_spaces_are_not():
    space = KeySpace("t", "m", "r", 3)
    composed, decomposed = space.keys([normalized("Zürich"), normalized("Zu\u0308rich")])
    assert composed == decomposed
    assert len(set(space.keys(["a b", "a  b", " a b", "a b\n", "A b"]))) == 5


@given(texts, texts)
def test_other_texts_have_other_keys(one: str, other: str):
    first, second = KeySpace("t", "m", "r", 3).keys([one, other])
    assert (first == second) == (one == other)


@given(spaces, spaces)
def test_spaces_do_not_overlap(one: KeySpace, other: KeySpace):
    assert (one.prefix == other.prefix) == (one == other)
    if one != other:
        assert not one.prefix.startswith(other.prefix)
