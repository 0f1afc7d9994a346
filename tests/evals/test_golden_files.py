"""Golden cases: read with file and line of what is wrong, rendered by any version, added whole."""

import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.cases import CasesUnreadable, load_cases
from evals.golden_cases import (
    KEYS,
    CaseRefused,
    GoldenCase,
    add_golden,
    case_for,
    check_golden,
    golden_path,
    load_golden,
    schema_of,
    texts_of,
)
from prompts.library import load_library, parse_prompt

PROMPT = """\
name: asker
template: "Say {{ question }}{% for one in texts %} {{ one }}{% endfor %}"
variables: [{name: question}, {name: texts, type: list, required: false, default: ["none"]}]
model: m
evaluation: {fields: {user_input: question, retrieved_contexts: texts}}
"""
CASE = b'{"case_id": "a", "variables": {"question": "why?"}}'
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@pytest.fixture
def prompt():
    return parse_prompt(PROMPT.encode(), "asker.yaml")


def written(tmp_path, *lines):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"case_id": "b", "answer": 1}', "answer: no such key"),
        (b'{"variables": {"question": "x"}}', "without case_id"),
        (b'{"case_id": "b"}', "without variables"),
        (b'{"case_id": "", "variables": {"question": "x"}}', "case_id: a text"),
        (b'{"case_id": "b", "variables": {"question": "x"}, "reference": 3}', "reference: a text"),
        (
            b'{"case_id": "b", "variables": {"q": "x"}, "retrieved_contexts": [1]}',
            "a list of texts",
        ),
        (b'{"case_id": "b", "variables": {"q": "x"}, "schema": {}}', "schema: an object"),
        (b'{"case_id": "b", "variables": {"q": "x"}, "tags": 1}', "tags: an object"),
        (b'{"case_id": "a", "variables": {"question": "x"}}', "'a' is there twice"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, what):
    path = written(tmp_path, CASE, b"", line)
    with pytest.raises(CasesUnreadable) as caught:
        load_golden(path)
    assert str(caught.value).startswith(f"{path}:3: ") and what in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ROWS = st.dictionaries(st.sampled_from(sorted(KEYS)), JSON, max_size=6).map(orjson.dumps)


@given(st.lists(st.binary(max_size=20) | ROWS, max_size=4).map(b"\n".join))
@settings(deadline=None)
def test_any_file_is_cases_or_says_what_is_wrong(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.jsonl"
        path.write_bytes(content)
        try:
            found = load_golden(path)
        except CasesUnreadable as error:
            assert str(error).startswith(f"{path}:")
        else:
            assert len({one.case_id for one in found}) == len(found) > 0
            path.write_bytes(b"\n".join(orjson.dumps(one.row()) for one in found))
            assert load_golden(path) == found


def test_a_file_without_cases_or_none_at_all(tmp_path):
    with pytest.raises(CasesUnreadable, match="no case in it"):
        load_golden(written(tmp_path, b""))
    with pytest.raises(CasesUnreadable, match="no file of cases"):
        load_golden(tmp_path / "nowhere.jsonl")


def test_a_case_that_the_prompt_cannot_ask_is_named(tmp_path, prompt):
    path = written(tmp_path, CASE, b'{"case_id": "b", "variables": {"town": "x"}}')
    with pytest.raises(CasesUnreadable, match=r"cases\.jsonl:2: .*town: unknown"):
        check_golden(prompt, load_golden(path))


@given(TEXT, st.none() | TEXT, st.none() | st.lists(TEXT, max_size=3))
@settings(deadline=None)
def test_what_metrics_need_is_what_the_case_gives_else_the_prompts_variables(text, gave, contexts):
    prompt = parse_prompt(PROMPT.encode(), "asker.yaml")
    golden = GoldenCase(
        "a",
        {"question": text},
        reference=gave,
        retrieved_contexts=None if contexts is None else tuple(contexts),
    )
    case = case_for(prompt, golden)
    assert case.user_input == text and case.reference == gave
    assert case.retrieved_contexts == (("none",) if contexts is None else tuple(contexts))
    assert text in case.messages[0]["content"]


def test_texts_of_contexts_in_every_form():
    assert texts_of([{"id": 1, "text": "a"}, "b", {"x": 1}]) == ("a", "b", '{"x":1}')
    assert texts_of("a") == ("a",) and texts_of([]) == ()


def test_the_schema_is_the_one_that_the_model_is_held_to(prompt):
    schema = {"type": "object"}
    for params in (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"structured_outputs": {"json": schema}},
    ):
        assert schema_of(prompt.model_copy(update={"params": params})) == schema
    assert schema_of(prompt) is None
    assert (
        schema_of(prompt.model_copy(update={"params": {"response_format": {"type": "x"}}})) is None
    )


@given(st.dictionaries(st.sampled_from(["question"]), TEXT, min_size=1), st.none() | TEXT)
@settings(deadline=None)
def test_an_added_case_is_read_back_as_it_was(tmp_path_factory, variables, expected):
    path = tmp_path_factory.mktemp("added") / "cases.jsonl"
    prompt = parse_prompt(PROMPT.encode(), "asker.yaml")
    added = add_golden(path, GoldenCase("new", variables, expected=expected), prompt)
    assert load_golden(path) == [added] and added.variables == variables


def test_adding_keeps_every_byte_that_was_there_and_the_file_s_mode(tmp_path, prompt):
    path = written(tmp_path, CASE)  # without an end of its last line
    path.chmod(0o644)
    add_golden(path, GoldenCase("b", {"question": "x"}), prompt)
    assert path.read_bytes().startswith(CASE + b"\n") and path.stat().st_mode & 0o777 == 0o644
    assert [one.case_id for one in load_golden(path)] == ["a", "b"]
    assert not list(tmp_path.glob(".*"))


def test_what_does_not_belong_into_a_file_is_refused_and_nothing_is_written(tmp_path, prompt):
    path = written(tmp_path, CASE[:-1] + b', "expected": 1}')
    before = path.read_bytes()
    for case, why in (
        (GoldenCase("a", {"question": "x"}, expected=1), "there already"),
        (GoldenCase("b", {"question": "why?"}, expected=1), "a asks the same"),
        (GoldenCase("b", {"question": "x"}), "--expected"),
    ):
        with pytest.raises(CaseRefused, match=why):
            add_golden(path, case, prompt)
    broken = written(tmp_path, CASE, b"{")
    with pytest.raises(CasesUnreadable, match=":2: "):
        add_golden(broken, GoldenCase("b", {"question": "x"}), prompt)
    assert broken.read_bytes() == CASE + b"\n{" and before


def test_a_file_of_messages_gets_messages(tmp_path):
    """`extraction.jsonl` is read by the training's evaluation too, which knows no variables."""
    prompt = load_library()["extractor"]
    path = tmp_path / "extraction.jsonl"
    path.write_bytes(golden_path("extraction.jsonl").read_bytes())
    case = GoldenCase("new", {"sentence": "Ann is a cook in Rome."}, expected={"name": "Ann"})
    add_golden(path, case, prompt)
    found = load_cases(path)[-1]
    assert found.messages[-1]["content"] == "Ann is a cook in Rome."
    assert orjson.loads(path.read_bytes().splitlines()[-1]).keys() == {
        "case_id", "messages", "expected"
    }  # fmt: skip
    assert case_for(prompt, load_golden(path)[-1]).user_input == "Ann is a cook in Rome."


def test_a_path_is_a_name_among_the_golden_files_or_a_path(tmp_path):
    assert golden_path("assistant.jsonl").parent.name == "golden"
    assert golden_path(str(tmp_path / "x.jsonl")) == tmp_path / "x.jsonl"


def test_cases_that_are_added_at_once_are_all_there(tmp_path, prompt):
    path = written(tmp_path, CASE)
    script = (
        "import sys; from pathlib import Path; from prompts.library import load_prompt\n"
        "from evals.golden_cases import GoldenCase, add_golden\n"
        "path, who = Path(sys.argv[1]), sys.argv[2]\n"
        "prompt = load_prompt(path.with_name('asker.yaml'))\n"
        "for number in range(25):\n"
        "    case = GoldenCase(f'{who}-{number}', {'question': f'{who} {number}'})\n"
        "    add_golden(path, case, prompt)\n"
    )
    path.with_name("asker.yaml").write_text(PROMPT)
    both = [subprocess.Popen([sys.executable, "-c", script, path, who]) for who in "xy"]
    assert [one.wait(60) for one in both] == [0, 0]
    assert len(load_golden(path)) == 51
    assert sorted(one.name for one in tmp_path.iterdir()) == ["asker.yaml", "cases.jsonl"]
