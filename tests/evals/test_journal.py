"""The journal: what was kept is found again, whatever tore the file's end; one has it at a time."""

import json
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.journal import MOST_HOURS, Journal, JournalInUse, key_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.lists(st.tuples(st.sampled_from("abcdef"), VALUES), max_size=12)


@given(ENTRIES, st.integers(min_value=0), ENTRIES)
@settings(deadline=None)
def test_what_was_kept_is_found_whatever_a_crash_tore(before, cut, after):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.journal"
        with Journal(path) as journal:
            for key, value in before:
                journal.put(key, value)
        content = path.read_bytes()
        cut %= len(content) + 1
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        if content[cut : cut + 1] == b"\n":
            whole += 1  # nothing but the line's end is missing
        expected = dict(before[:whole])
        with Journal(path) as journal:
            assert journal.found == len(expected)
            assert {key: journal.get(key) for key in expected} == expected
            for key, value in after:
                journal.put(key, value)
        with Journal(path) as journal:
            both = expected | dict(after)
            assert {key: journal.get(key) for key in both} == both and journal.found == len(both)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_no_obstacle(noise):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.journal"
        path.write_bytes(noise)
        with Journal(path) as journal:
            journal.put("key", [1])
        with Journal(path) as journal:
            assert journal.get("key") == [1]


def test_what_is_old_is_measured_anew(tmp_path):
    path = tmp_path / "a.journal"
    long_ago = int(time.time()) - MOST_HOURS * 3600 - 1
    rows = [{"key": "old", "at": long_ago, "value": 1}, {"key": "new", "at": long_ago + 60,
                                                         "value": 2}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Journal(path) as journal:
        assert (journal.get("old"), journal.get("new"), journal.found) == (None, 2, 1)


def test_one_evaluation_has_it_and_the_next_one_after_it(tmp_path):
    path = tmp_path / "deep" / "a.journal"
    with Journal(path) as journal:
        journal.put("a", 1)
        with pytest.raises(JournalInUse, match="under way"):
            Journal(path)
        journal.finish()
    assert not path.exists()
    with Journal(path) as journal:
        assert journal.found == 0
        journal.put("a", 1)
        journal.forget()
        assert journal.get("a") is None
        journal.put("b", 2)
    with Journal(path) as journal:
        assert (journal.get("a"), journal.get("b")) == (None, 2)
    assert path.stat().st_mode & 0o777 == 0o600  # answers are nobody else's


def test_a_key_stands_for_all_its_parts_and_not_for_their_order_in_objects():
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert len({key_of("a", "b"), key_of("ab"), key_of("a", ["b"]), key_of("b", "a")}) == 4
