"""Prompt files: read strictly, every mistake with its file and line, whatever the bytes are."""

import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prompts.library import (
    LIBRARY,
    LONGEST_FILE,
    BadPromptFile,
    load_library,
    load_prompt,
    parse_library,
    parse_prompt,
)

GOOD = """\
# a comment
name: greeter
description: says hello
messages:
  - role: system
    content: |
      Be kind.
      {% if formal %}Be formal.{% endif %}
  - role: user
    content: "I am {{ who }}."
variables:
  - {name: who, type: string}
  - name: formal
    type: boolean
    required: false
    default: false
model: m
params: {temperature: 0, max_tokens: 9}
evaluation:
  metrics: [exact_match]
  fields: {user_input: who}
"""
LINE = re.compile(r"greeter\.yaml:(\d+): .+")


def mistakes(text: str) -> list[str]:
    """What is said of the file, a line for each mistake."""
    with pytest.raises(BadPromptFile) as refused:
        parse_prompt(text.encode(), "greeter.yaml")
    return str(refused.value).splitlines()


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_good_file_is_a_prompt(tmp_path: Path):
    path = tmp_path / "greeter.yaml"
    path.write_text(GOOD)
    prompt = load_prompt(path)
    assert prompt == load_library(tmp_path)["greeter"]
    assert prompt.render({"who": "Ann", "formal": True}) == [
        {"role": "system", "content": "Be kind.\nBe formal.\n"},
        {"role": "user", "content": "I am Ann."},
    ]


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("model: m", "model: m\nmodle: m", "modle", "modle: Extra inputs"),
        ("type: boolean", "typ: boolean", "typ:", "variables.1.typ: Extra inputs"),
        ("am {{ who", "am {{ gone", "I am", "messages.1.content: gone: not among the variables"),
        ("{% if formal %}", "{% if gone %}", "{% if", "messages.0.content: gone: not among"),
        ("{% endif %}", "", "{% if", "messages.0.content: Unexpected end of template"),
        ("{% if formal %}", "{% set a = 1 %}{% if formal %}", "{% set", "assign: a template has"),
        ("- name: formal", "- name: who\n  - name: formal", "name: who\n", "who: declared twice"),
        ("default: false", "default: maybe", "name: formal", "'maybe' is no boolean"),
        ("role: user", "role: robot", "role: robot", "messages.1.role: Input should be"),
        ("model: m", "model: m\nname: other", "name: other", "the key 'name' stands twice"),
        ("type: boolean", "type: boolean\n    name: x", "name: x", "the key 'name' stands twice"),
        ("{temperature: 0,", "{user: x,", "params", "params.user: not for a prompt to set"),
        ("temperature: 0", "temperature: .nan", "params", "params: Out of range float"),
        ("{user_input: who}", "{user_input: gone}", "fields", "user_input: gone: no such variable"),
        ("name: greeter", "name: Greeter", "name: G", "name: String should match pattern"),
        ("model: m\n", "", "name: greeter", "model: Field required"),
        ("model: m", "model: &m m", "&m", "anchors and aliases are not taken"),
        ("model: m", "model: *m", "*m", "anchors and aliases are not taken"),
        ("model: m", "model: [m", "params", "expected ',' or ']'"),
        ("model: m", "model: !!python/name:os.system m", "model", "could not determine a constr"),
        ("model: m", "model: 'a\x01b'", "model", "not YAML: special characters"),
        ("model: m", "model: m: x", "model", "mapping values are not allowed"),
        ("model: m", "model: m\n---\na: b", "---", "but found another document"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line(old, new, at, said):
    text = GOOD.replace(old, new)
    found = mistakes(text)
    assert len(found) == 1
    assert found[0].startswith(f"greeter.yaml:{line_of(text, at)}: ")
    assert said in found[0]


def test_all_mistakes_are_named_at_once():
    text = GOOD.replace("model: m", "modle: m").replace("role: user", "role: robot")
    text = text.replace("type: string", "type: text")
    found = [int(line.split(":")[1]) for line in mistakes(text)]
    wanted = [line_of(text, part) for part in ("role: robot", "type: text", "modle", "name")]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("text", ["", "[]", "just text", "7", "null", "# nothing\n", "- name: x"])
def test_a_file_of_another_kind_is_no_prompt(text):
    (said,) = mistakes(text)
    assert said.startswith("greeter.yaml:1: not a prompt")


def test_bytes_that_are_no_text_have_their_line():
    with pytest.raises(BadPromptFile, match=r"^greeter\.yaml:3: not UTF-8: invalid start byte$"):
        parse_prompt(b"name: x\n\nmodel: \xff\n", "greeter.yaml")
    with pytest.raises(BadPromptFile, match=f"greeter.yaml:1: longer than {LONGEST_FILE}"):
        parse_prompt(b"#" * (LONGEST_FILE + 1), "greeter.yaml")


def test_a_date_is_text():
    text = GOOD.replace("max_tokens: 9", "stop: 2026-01-31")
    assert parse_prompt(text.encode(), "greeter.yaml").params["stop"] == "2026-01-31"


def test_names_are_unique_and_those_of_the_files():
    other = GOOD.replace("name: greeter", "name: other")
    files = [("a/greeter.yaml", GOOD), ("a/greeter.yml", GOOD), ("b.yaml", other)]
    with pytest.raises(BadPromptFile) as refused:
        parse_library((path, text.encode()) for path, text in files)
    assert str(refused.value).splitlines() == [
        "a/greeter.yml:2: name: greeter is in a/greeter.yaml already",
        "b.yaml:2: name: other: the file of a prompt has its name, other.yaml",
    ]


def test_mistakes_of_all_files_are_named(tmp_path: Path):
    (tmp_path / "b.yaml").write_text("name: [")
    (tmp_path / "a.yaml").write_text(GOOD.replace("model: m\n", ""))
    (tmp_path / "greeter.yaml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("no prompt, and none is wanted")
    with pytest.raises(BadPromptFile) as refused:
        load_library(tmp_path)
    found = str(refused.value).splitlines()
    assert [line.split(": ")[0] for line in found] == [
        f"{tmp_path}/a.yaml:2",
        f"{tmp_path}/b.yaml:1",
    ]
    with pytest.raises(FileNotFoundError):
        load_library(tmp_path / "nowhere")


@settings(max_examples=200, deadline=None)
@given(
    st.text("abc:-[]{}&*!|>'\"%#\n \t,?0é\x85\ud7ff", max_size=60).map(str.encode)
    | st.binary(max_size=30)
)
@example(b"name: " + b"9" * 5000)
@example(b"? [a]\n: b")
@example(b"<<: {name: x}\nname: y")
@example(b"[" * 1500)
@example(b'name: "\\ud800"\nmodel: m\ntemplate: x')
@example(b'name: x\nmodel: m\ntemplate: "\\ud800"')
def test_whatever_the_bytes_it_is_a_prompt_or_says_where_not(content):
    try:
        parse_prompt(content, "greeter.yaml")
    except BadPromptFile as error:
        for line in str(error).splitlines():
            matched = LINE.fullmatch(line)
            assert matched, line
            assert 1 <= int(matched[1]) <= len(content.decode(errors="replace").splitlines()) + 1


def test_a_file_of_many_keys_is_read_soon():
    began = time.thread_time()
    (said,) = mistakes("params:\n" + "".join(f" k{n}: 1\n" for n in range(3000)) + "params: 1")
    assert "the key 'params' stands twice" in said
    assert time.thread_time() - began < 5


def test_the_library_is_whole():
    library = load_library()
    assert {"assistant", "ticket-classifier", "extractor", "judge"} <= library.keys()
    for path in LIBRARY.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["description"]
