"""A prompt: which variables it takes, what it renders, and what its hash stands for."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prompts.prompt import BadVariables, Prompt
from prompts.template import CHARACTERS, STEPS, RenderFailed

GIVEN: dict[str, Any] = {
    "name": "greeter",
    "description": "says hello",
    "messages": [
        {"role": "system", "content": "Be {{ tone }}."},
        {"role": "user", "content": "I am {{ who }}."},
    ],
    "variables": [
        {"name": "who"},
        {"name": "tone", "required": False, "default": "kind"},
    ],
    "model": "m",
    "params": {"max_tokens": 9, "stop": ["\n"]},
    "evaluation": {"metrics": ["exact_match"], "fields": {"user_input": "who"}},
}
VALUES: dict[str, Any] = {
    "string": "x", "number": 1.5, "integer": 1, "boolean": True, "list": [], "object": {},
}  # fmt: skip
names = st.text("abcdefgh", min_size=1, max_size=6)


def prompt(**changes: Any) -> Prompt:
    return Prompt.model_validate(GIVEN | changes)


def test_it_renders_its_messages():
    rendered = prompt().render({"who": "Ann"})
    assert rendered == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "I am Ann."},
    ]
    assert prompt().render({"who": "Ann", "tone": "brief"})[0]["content"] == "Be brief."
    one = prompt(messages=[], template="{{ who }}: {{ tone }}")
    assert one.render({"who": "Ann"}) == [{"role": "user", "content": "Ann: kind"}]


def test_a_value_is_never_read_as_a_template():
    rendered = prompt().render({"who": "{{ tone }}{% for a in b %}"})
    assert rendered[1]["content"] == "I am {{ tone }}{% for a in b %}."


@given(st.dictionaries(names, st.text(max_size=3)), st.dictionaries(names, st.booleans()))
def test_missing_and_unknown_variables_are_named(given, declared):
    variables = [
        {"name": name, "required": required, "default": None if required else "d"}
        for name, required in declared.items()
    ]
    one = prompt(messages=[], template="x", variables=variables, evaluation={})
    missing = {name for name, required in declared.items() if required} - given.keys()
    unknown = given.keys() - declared.keys()
    if not missing and not unknown:
        assert one.render(given)
        return
    with pytest.raises(BadVariables) as refused:
        one.render(given)
    said = str(refused.value).split(" (prompt ")[0].split("; ")
    wanted = [f"{name}: unknown" for name in sorted(unknown)]
    wanted += [f"{name}: missing" for name in declared if name in missing]
    assert said[:10] == wanted[:10]
    assert len(said) <= 11


def test_a_message_about_thousands_of_variables_is_short():
    with pytest.raises(BadVariables, match="and 9991 more") as refused:
        prompt().render({"a" * 1000 + str(number): 1 for number in range(10_000)})
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("value", [*VALUES.values(), None], ids=repr)
def test_a_variable_takes_values_of_its_type(kind, value):
    variables = [{"name": "v", "type": kind}]
    one = prompt(messages=[], template="{{ v }}", variables=variables, evaluation={})
    fits = VALUES[kind] is value or (kind == "number" and value == 1 and value is not True)
    if fits:
        assert one.complete({"v": value}) == {"v": value}
    else:
        with pytest.raises(BadVariables, match=f"v: must be of type {kind}"):
            one.render({"v": value})


def test_a_variable_without_a_value_is_for_an_if():
    variables = [{"name": "who", "required": False}]
    text = "{% if who %}{{ who }}{% else %}nobody{% endif %}"
    one = prompt(messages=[], template=text, variables=variables)
    assert one.render({})[0]["content"] == "nobody"
    bare = prompt(messages=[], template="{{ who }}", variables=variables)
    with pytest.raises(RenderFailed, match=r"prompt greeter, user message: .*who: has no value"):
        bare.render({})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"messages": [GIVEN["messages"][1], GIVEN["messages"][0]]},
        {"messages": [{**GIVEN["messages"][0], "role": "developer"}, GIVEN["messages"][1]]},
        {"messages": [{"role": "system", "content": "Be {{ tone }}!"}, GIVEN["messages"][1]]},
        {"variables": [{"name": "who", "type": "list"}, GIVEN["variables"][1]]},
        {"variables": [GIVEN["variables"][0], {**GIVEN["variables"][1], "default": "rude"}]},
        {"variables": [*GIVEN["variables"], {"name": "more", "required": False}]},
        {"variables": [GIVEN["variables"][0], {"name": "tone", "required": True}]},
        {"model": "m2"},
        {"params": {"max_tokens": 10, "stop": ["\n"]}},
        {"params": {"max_tokens": 9}},
        {"params": {}},
    ],
)
def test_the_hash_changes_with_what_an_answer_depends_on(change):
    assert prompt(**change).content_hash != prompt().content_hash


@pytest.mark.parametrize(
    "change",
    [
        {"description": "another"},
        {"evaluation": {"metrics": ["latency"], "gate": [{"metric": "latency"}], "seeds": 3}},
        {"variables": GIVEN["variables"][::-1]},
        {"variables": [{**GIVEN["variables"][0], "description": "d"}, GIVEN["variables"][1]]},
        {"variables": [{"name": "who", "required": True}, GIVEN["variables"][1]]},
        {"params": dict(reversed(GIVEN["params"].items()))},
    ],
)
def test_the_hash_stays_with_anything_else(change):
    assert prompt(**change).content_hash == prompt().content_hash


def test_the_hash_is_the_same_for_a_template_and_its_one_message():
    short = prompt(messages=[], template="I am {{ who }}.")
    long = prompt(messages=[GIVEN["messages"][1]])
    assert short.content_hash == long.content_hash
    assert len(short.content_hash) == 64


@settings(max_examples=200)
@given(
    st.text(max_size=20),
    st.dictionaries(names, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
)
def test_a_prompt_made_of_its_content_is_the_same_prompt(text, params):
    one = prompt(messages=[{"role": "user", "content": "{% raw %}" + text + "{% endraw %}"}])
    one = one.model_copy(update={"params": params})
    again = Prompt.model_validate({"name": one.name, **one.content})
    assert again.content_hash == one.content_hash
    assert again.render({"who": "x"}) == one.render({"who": "x"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": "x"}, "either messages or template"),
        ({"messages": []}, "either messages or template"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": "x"}] * 65}, "at most 64"),
        ({"messages": [{"role": "user", "content": "{{ gone }}"}]}, "content: line 1 of it: gone"),
        ({"messages": [{"role": "user", "content": "\n{% if %}"}]}, "content: line 2 of it"),
        ({"variables": [{"name": "who"}, {"name": "tone"}, {"name": "who"}]}, "declared twice"),
        ({"variables": [{"name": "who", "default": "x"}, {"name": "tone"}]}, "required: false"),
        ({"variables": [{"name": "Who"}]}, "pattern"),
        ({"variables": [{"name": "who", "type": "text"}]}, "type"),
        ({"params": {"model": "x", "user": "y"}}, "params.model: not for a prompt to set"),
        ({"params": {"t": float("nan")}}, "params: .*not JSON compliant"),
        ({"params": {"t": object()}}, "JSON"),
        ({"params": {"t": "\ud800"}}, "surrogate|Unicode|unicode"),
        ({"evaluation": {"fields": {"user_input": "gone"}}}, "fields.user_input: gone: no such"),
        ({"name": "Greeter"}, "pattern"),
        ({"model": ""}, "at least 1"),
        ({"shoe": 1}, "shoe"),
    ],
)
def test_what_is_no_prompt_is_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        prompt(**change)


@pytest.mark.parametrize(("kind", "value"), [("string", 1), ("number", True), ("list", {})])
def test_a_default_is_of_the_type(kind, value):
    variable = {"name": "who", "type": kind, "required": False, "default": value}
    with pytest.raises(ValidationError, match=f"is no {kind}"):
        prompt(variables=[variable, GIVEN["variables"][1]])


def test_all_messages_share_one_bound():
    long = {"role": "user", "content": "{% for a in xs %}{{ a }}{% endfor %}"}
    variables = [{"name": "xs", "type": "list"}]
    one = prompt(messages=[long] * 60, variables=variables, evaluation={})
    assert one.render({"xs": ["a"] * 100})
    began = time.thread_time()
    with pytest.raises(RenderFailed, match=str(STEPS)):
        one.render({"xs": ["a"] * 4000})
    with pytest.raises(RenderFailed, match=str(CHARACTERS)):
        one.render({"xs": ["a" * 100_000]})
    assert time.thread_time() - began < 0.3
