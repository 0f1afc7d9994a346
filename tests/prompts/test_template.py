"""Templates: what they mean, what they refuse, and that they end soon whatever they are given."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from prompts.template import CHARACTERS, DEPTH, STEPS, BadTemplate, RenderFailed, Template
from tests.prompts.template_source import Sandbox, Writer

SECONDS = 0.3  # of a rendering
PARSE_SECONDS = 1.5  # when a file or a version is read, never in a request
LONG = 20_000
TEMPLATES = 20
DUNDERS = [name for kind in (str, dict, list, int) for name in dir(kind)]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def render(source: str, **given: Any) -> str:
    return Template.parse(source).render(given)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_it_renders_as_jinjas_own_sandbox_does(seed):
    writer, rendered = Writer(seed), 0
    for _ in range(TEMPLATES):
        source, given = writer.template(), writer.values()
        try:
            expected: str | None = Sandbox().from_string(source).render(given)
        except (TemplateError, TypeError):
            expected = None
        try:
            text: str | None = render(source, **given)
            rendered += 1
        except RenderFailed:
            text = None
        assert text == expected, (source, given)
    assert rendered > 0


@settings(max_examples=200, deadline=None)
@given(
    json_values, st.sampled_from(DUNDERS), st.sampled_from(["{{{{ x.{} }}}}", "{{{{ x['{}'] }}}}"])
)
def test_a_name_never_leads_to_an_attribute_of_python(value, name, form):
    source = form.format(name)
    if isinstance(value, dict) and name in value:
        value = {key: part for key, part in value.items() if key != name}
    with pytest.raises(RenderFailed, match=f"{name}: has no value"):
        render(source, x=value)
    assert render(source, x={name: "a key as any other"}) == "a key as any other"


@settings(max_examples=200, deadline=None)
@given(st.text("{}%#ab.|()[]'\"\n _-+*~,:=<>!0x9", max_size=40))
@example("{{ 1e999 }}")
@example("{{ " + "9" * 5000 + " }}")
@example("{{ 0x" + "f" * 5000 + " }}")
@example("{{ '\\x' }}")
@example("{{ a" + ".b" * 50 + " }}")
def test_whatever_the_text_it_is_a_template_or_says_on_which_line_not(source):
    try:
        parsed = Template.parse(source)
    except BadTemplate as error:
        assert 1 <= error.line <= source.count("\n") + 1
        assert str(error)
        return
    try:
        text = parsed.render(dict.fromkeys(parsed.names, "v"))
    except RenderFailed:
        return
    assert len(text) <= len(source) + 100


@pytest.mark.parametrize(
    "statement",
    [
        "{% set a = 1 %}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}",
        "{% macro m() %}{% endmacro %}", "{% block b %}{% endblock %}",
        "{% with a = 1 %}{% endwith %}",
        "{% filter upper %}a{% endfilter %}", "{% call m() %}{% endcall %}",
        "{% autoescape true %}{% endautoescape %}",
        "{% for a, b in c %}{% endfor %}", "{% for a in b if a %}{% endfor %}",
        "{% for a in b recursive %}{% endfor %}", "{% for loop in b %}{% endfor %}",
        "{{ a() }}", "{{ a.b() }}", "{{ ''.join(a) }}", "{{ a + b }}", "{{ a * 9 }}",
        "{{ a ** 9 }}",
        "{{ a ~ b }}", "{{ -a }}", "{{ [a] }}", "{{ (a, b) }}", "{{ {'a': b} }}", "{{ a[1:2] }}",
        "{{ a if b else c }}", "{{ a|attr('b') }}", "{{ a|map('upper') }}", "{{ a|format(b) }}",
        "{{ a|join(b, 'c') }}", "{{ a|join(attribute='b') }}", "{{ a|join(*b) }}",
        "{{ a|join(**b) }}", "{{ a|upper(b) }}", "{% if a is callable %}{% endif %}",
        "{% if a is defined(b) %}{% endif %}", "{% if a is undefined b %}{% endif %}",
    ],
)  # fmt: skip
def test_anything_else_of_jinja_is_refused_with_its_line(statement):
    with pytest.raises(BadTemplate) as refused:
        Template.parse(f"first\n\n{statement}\nlast")
    assert refused.value.line == 3


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\n{{ b", 2),
        ("a\n{% if b %}\nc", 2),
        ("{% nonsense %}", 1),
        ("\n\n{{ b }", 3),
        ("{{}}", 1),
    ],
)
def test_a_mistake_of_form_has_its_line(source, line):
    with pytest.raises(BadTemplate) as refused:
        Template.parse(source)
    assert refused.value.line == line


def test_names_are_the_free_ones_with_their_lines():
    source = (
        "{{ a.b }}\n{% for x in xs %}{{ x }} {{ loop.index }} {{ y[z] }}{% else %}\n{{ x }}"
        "{% endfor %}\n{% if loop is defined and a == w|join(v) %}{% endif %}"
    )
    assert Template.parse(source).names == {
        "a": 1, "xs": 2, "y": 2, "z": 2, "x": 3, "loop": 4, "w": 4, "v": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "given", "said"),
    [
        ("{{ a }}", {}, "line 1: a: has no value"),
        ("\n{{ a.b.c }}", {"a": {}}, "line 2: b.c: has no value"),
        ("{{ a[b] }}", {"a": {"x": 1}, "b": "secret"}, "secret: has no value"),
        ("{% for x in a %}{% endfor %}", {}, "a: has no value"),
        ("{% for x in a %}{% endfor %}", {"a": "text"}, "line 1: `for` wants a list"),
        ("{{ a|length }}", {"a": 1}, "not of the kind"),
        ("{{ a|join }}", {"a": "text"}, "`join` wants a list"),
        ("{% if a < 1 %}{% endif %}", {"a": "x"}, "not of the kind"),
        ("{% if a == b %}{% endif %}", {"a": 1}, "b: has no value"),
        ("{{ a|upper }}", {}, "a: has no value"),
    ],
)
def test_why_it_cannot_be_rendered_is_said(source, given, said):
    with pytest.raises(RenderFailed, match=said):
        render(source, **given)


def test_values_are_written_as_json_and_text_as_it_is():
    given = {"a": "<b> & 'ü'\n", "b": [1, 2.5, None, True, {"k": "ü"}]}
    assert render("{{ a }}|{{ b }}|{{ b[3] }}|{{ b[2] }}", **given) == (
        "<b> & 'ü'\n" + '|[1, 2.5, null, true, {"k": "ü"}]|true|null'
    )
    assert json.loads(render("{{ b|tojson }}", **given)) == given["b"]


@pytest.mark.parametrize(("value", "text"), [(1, ""), (2, "in"), (4, "in"), (5, "")])
def test_a_chain_of_comparisons_is_one(value, text):
    assert render("{% if 1 < a < 5 != a %}in{% endif %}", a=value) == text


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def bombs() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Templates that would take long, or much memory, without bounds; with their names."""
    many: dict[str, Any] = {"xs": list(range(LONG))}
    loops = "{% for a in xs %}" * 8, "{% endfor %}" * 8
    yield "nested loops", "x".join(loops), many
    yield "nested empty loops", "".join(loops), many
    yield "a loop over much", "{% for a in xs %}{% endfor %}", {"xs": [0] * 10**6}
    long = {**many, "by": "y" * 100_000}
    yield "a long join", "{{ xs|join(by) }}", long
    yield "a long join that is not written", "{% if xs|join(by) %}{% endif %}", long
    yield "joins again and again", "{% for a in xs %}{% if xs|join %}{% endif %}{% endfor %}", many
    yield "escapes of escapes", "{{ q" + "|tojson" * 35 + " }}", {"q": '"' * 10}
    yield "what grows as it is changed", "{{ q|upper|upper|length }}", {"q": "ß" * 190_000}
    yield "a long text, trimmed", "{{ q|trim }}", {"q": " " * 10**7}
    same = {"one": ["x" * 1000] * 5000, "two": ["x" * 1000] * 5000}
    two = "{% for a in xs %}{% if one == two %}{% endif %}{% endfor %}"
    yield "long values compared", two, {**many, **same}
    found = "{% for a in xs %}{% if one in two %}{% endif %}{% endfor %}"
    yield "members of long lists", found, {**many, "one": -1, "two": many["xs"]}
    needle = {"one": "a" * 650 + "b" + "a" * 10, "two": "a" * 2400}
    yield "a search that backtracks", found, {**many, **needle}
    for levels in (20_000, STEPS + 1):
        yield f"a value of {levels} levels", "{{ n }}", {"n": deep(levels)}
        nested = {"n": deep(levels), "m": deep(levels)}
        yield f"values of {levels} levels", "{% if n == m %}{% endif %}", nested
    parts = {**many, "n": [[["x"] * 50] * 50] * 10}
    yield (
        "a value of many parts",
        "{% for a in xs %}{% if n|tojson %}{% endif %}{% endfor %}",
        parts,
    )
    yield "parts that are written", "{{ n }}{{ n }}{{ n }}", {"n": [[0.1] * 100] * 100_000}
    yield "much text", "{% for a in xs %}" + "t" * 50_000 + "{% endfor %}", many


@pytest.mark.parametrize(
    ("source", "given"), [one[1:] for one in bombs()], ids=[one[0] for one in bombs()]
)
def test_a_bomb_ends_soon(source, given):
    parsed = Template.parse(source)
    began = time.thread_time()
    with pytest.raises(RenderFailed, match=f"{STEPS}|{CHARACTERS}|nests too deeply"):
        parsed.render(given)
    assert time.thread_time() - began < SECONDS


@pytest.mark.parametrize(
    "source",
    [
        "{% if a %}" * 9000, "{{ " + "(" * 9000, "{{ " + "not " * 9000 + "a }}", "{%- " * 9000,
        "{{ a" + "[0]" * 9000 + " }}", "{{ a" + " and a" * 9000 + " }}", "{#" * 9000,
        "{% raw %}" + "{% " * 9000, "{%" + " " * 90_000, "{{ 1" + "_1" * 40_000,
        "{% for a in a %}" * DEPTH + "{% endfor %}" * DEPTH, "x" * 100_001,
    ],
    ids=lambda source: f"{source[:16]}…",
)  # fmt: skip
def test_a_source_that_is_too_much_is_refused_soon(source):
    began = time.thread_time()
    with pytest.raises(BadTemplate):
        Template.parse(source)
    assert time.thread_time() - began < PARSE_SECONDS


def test_what_is_within_the_bounds_is_rendered():
    passages = [{"id": str(number), "text": "word " * 200} for number in range(100)]
    source = (
        "{% for passage in passages %}{% if passage.text is defined %}[{{ passage.id }}] "
        "{{ passage.text|trim }}{% else %}{{ passage }}{% endif %}\n{% endfor %}"
    )
    text = render(source, passages=passages)
    assert text.count("word") == 20_000
    assert len(text) < CHARACTERS
