"""Files of cases: what is written is read, and a bad line is named."""

import pytest

from evals.cases import CasesUnreadable, load_cases, save_cases
from evals.records import Case

GOOD = b'{"case_id":"1","messages":[{"role":"user","content":"x"}],"expected":"y","tags":{}}\n'


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "cases.jsonl"
    cases = [
        Case("1", ({"role": "user", "content": "Grüße\n"},), {"a": [1, None]}, {"kind": "plain"}),
        Case("2", ({"role": "system", "content": "s"}, {"role": "user", "content": "u"}), "text"),
    ]
    save_cases(path, cases)
    assert load_cases(path) == cases
    assert [entry.name for entry in tmp_path.iterdir()] == ["cases.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no case in it"),
        (GOOD + b"{\n", ":2: not JSON"),
        (GOOD + b"[]\n", ":2: not a JSON object"),
        (GOOD + GOOD, ":2: the id '1' is there twice"),
        (b'{"case_id":"1"}\n', ":1: without messages, expected"),
        (GOOD.replace(b'"1"', b"1"), "case_id: a text"),
        (GOOD.replace(b'[{"role":"user","content":"x"}]', b"[]"), "messages: a list of objects"),
        (GOOD.replace(b"{}", b"[]"), "tags: an object"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content)
    with pytest.raises(CasesUnreadable, match=message) as caught:
        load_cases(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CasesUnreadable, match="no file of cases") as caught:
        load_cases(tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl" in str(caught.value)


def test_empty_lines_and_missing_tags_are_fine(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b"\n" + GOOD.replace(b',"tags":{}', b"") + b"\n")
    assert load_cases(path)[0].tags == {}
