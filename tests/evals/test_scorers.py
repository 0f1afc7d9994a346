"""Scorers, and that scoring loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.json_text import read_json, same_json
from evals.records import Answer, Case, Score
from evals.scorers import (
    MISSING,
    NOT_EXPECTED,
    SCORERS,
    contains,
    cost,
    exact_match,
    latency,
    output_tokens,
    refusal,
    schema,
    score_all,
    valid_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def case(expected, case_id="one", **fields):
    return Case(case_id, ({"role": "user", "content": "?"},), expected, **fields)


def answer(text, case_id="one", **fields):
    return Answer(case_id, text, latency_ms=12.5, output_tokens=7, **fields)


@pytest.mark.parametrize(
    ("expected", "text", "value"),
    [
        ({"name": "Ada", "age": 36}, '{"name":"Ada","age":36}', 1.0),
        ({"name": "Ada", "age": 36}, '\n{ "age": 36.0, "name": "Ada" } ', 1.0),
        ({"name": "Ada"}, '{"name":"Ada","job":"poet"}', 0.0),
        ({"name": "Ada", "job": "poet"}, '{"name":"Ada"}', 0.0),
        ({"name": "Ada"}, '{"name":"ada"}', 0.0),
        ({"name": "Ada"}, 'Here it is: {"name":"Ada"}', 0.0),
        ({"right": True}, '{"right":1}', 0.0),
        ({"right": 1}, '{"right":true}', 0.0),
        ({"score": None}, '{"score":NaN}', 0.0),
        ([1, [2]], "[1,[2]]", 1.0),
        ([1, 2], "[2,1]", 0.0),
        ("Paris", " Paris\n", 1.0),
        ("Paris", "paris", 0.0),
        ("1", "1", 1.0),
        ("", "", 1.0),
    ],
)
def test_exact_match(expected, text, value):
    score = exact_match(case(expected), answer(text))
    assert (score.metric, score.value) == ("exact_match", value)
    assert (score.reason is None) == (value == 1.0)


@given(JSON)
def test_what_json_says_does_not_depend_on_how_it_is_written(value):
    import json

    for text in (json.dumps(value), json.dumps(value, indent=2, sort_keys=True)):
        assert same_json(read_json(text), value)


@given(JSON, JSON)
def test_json_equality_is_that_of_the_sorted_texts(one, other):
    import json

    texts = [json.dumps(value, sort_keys=True) for value in (one, other)]
    assert same_json(one, other) == (texts[0] == texts[1])


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1}', 1.0), ("[]", 1.0), ("7", 1.0), ("", 0.0), ("{'a': 1}", 0.0), ("NaN", 0.0)],
)
def test_valid_json(text, value):
    assert valid_json(case({}), answer(text)).value == value


@pytest.mark.parametrize(
    ("expected", "text", "value"),
    [
        ("Port 4000", "It listens on port\n4000.", 1.0),
        (["redis", "Feast"], "Feast, on REDIS", 1.0),
        (["redis", "Feast"], "on Redis", 0.0),
        (4000, "port 4000", 1.0),
        ("ﬁle", "a FILE", 1.0),
        ("Paris", "", 0.0),
    ],
)
def test_contains(expected, text, value):
    score = contains(case(expected), answer(text))
    assert (score.metric, score.value) == ("contains", value)
    assert (score.reason is None) == (value == 1.0)


def test_contains_names_what_is_missing():
    assert contains(case(["a", "b", "c"]), answer("b")).reason == "without 'a', 'c'"


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ('{"age": 3}', 1.0, None),
        ('{"age": -1}', 0.0, "$.age: -1 is less than the minimum of 0"),
        ("{}", 0.0, "$: 'age' is a required property"),
        ("{", 0.0, "not JSON"),
    ],
)
def test_schema(text, value, reason):
    score = schema(case({}, schema=SCHEMA), answer(text))
    assert score.value == value
    assert score.reason is reason or reason in (score.reason or "")


@pytest.mark.parametrize("given", [{"type": 3}, {"$ref": "http://127.0.0.1:9/schema.json"}])
def test_a_schema_that_is_none_or_lies_elsewhere_is_a_failed_score(given):
    (score,) = score_all([case({}, schema=given)], [answer("{}")], [schema])
    assert score.value is None
    assert "the schema" in (score.reason or "")


def test_what_the_case_does_not_say_has_no_value():
    found = [scorer(case(None), answer("x")) for scorer in (exact_match, contains, schema)]
    assert [score.value for score in found] == [None] * 3
    assert found[0].reason == NOT_EXPECTED


def test_what_an_answer_cost():
    assert latency(case("x"), answer("x")) == Score("one", "latency", 12.5)
    assert output_tokens(case("x"), answer("x")) == Score("one", "output_tokens", 7.0)
    assert cost(case("x"), answer("x", cost_usd=0.25)) == Score("one", "cost", 0.25)
    assert cost(case("x"), answer("x")).value is None


def test_refusal():
    assert refusal(case("x"), answer("Paris.")) == Score("one", "refusal", 0.0)
    assert refusal(case("x"), answer("I'm sorry, but I can't help with that.")).value == 1.0


def test_a_failed_answer_is_wrong_and_its_cost_unknown():
    failed = answer("", error="engine answered 500")
    found = {name: scorer(case("", schema={}), failed) for name, scorer in SCORERS.items()}
    assert {name: score.value for name, score in found.items()} == {
        "exact_match": 0.0,
        "contains": 0.0,
        "valid_json": 0.0,
        "schema": 0.0,
        "refusal": None,
        "latency": None,
        "cost": None,
        "output_tokens": None,
    }
    assert {name: score.metric for name, score in found.items()} == {name: name for name in SCORERS}
    assert {score.reason for score in found.values()} == {"engine answered 500"}


def test_every_case_is_scored_in_order_also_without_an_answer():
    cases = [case("a", "1"), case("b", "2"), case("c", "3")]
    answers = [answer("c", "3"), answer("a", "1")]
    scores = score_all(cases, answers, [exact_match, latency])
    assert [(score.case_id, score.metric, score.value) for score in scores] == [
        ("1", "exact_match", 1.0),
        ("1", "latency", 12.5),
        ("2", "exact_match", 0.0),
        ("2", "latency", None),
        ("3", "exact_match", 1.0),
        ("3", "latency", 12.5),
    ]
    assert scores[2].reason == MISSING


def test_a_crash_is_a_failed_score_and_the_run_goes_on(caplog):
    def first_letter(case, answer):
        return Score(case.case_id, "first_letter", float(answer.text[0] == "a"))

    cases = [case("a", "1"), case("", "2"), case("b", "3")]
    answers = [answer("a", "1"), answer("", "2"), answer("b", "3")]
    scores = score_all(cases, answers, [first_letter, exact_match])
    assert [score.value for score in scores] == [1.0, 1.0, None, 1.0, 0.0, 1.0]
    assert scores[2].metric == "first_letter"
    assert scores[2].reason == "IndexError: string index out of range"
    assert "scorer first_letter failed on case 2" in caplog.text


def test_answers_that_do_not_fit_the_cases_are_refused():
    with pytest.raises(ValueError, match="two answers to the case 'one'"):
        score_all([case("a")], [answer("a"), answer("b")], [exact_match])
    with pytest.raises(ValueError, match="'two': there is no such case"):
        score_all([case("a")], [answer("a", "two")], [exact_match])


@pytest.mark.parametrize(
    ("expected", "text", "value"),
    [
        (True, "true", 1.0), (False, " false\n", 1.0), (True, "True", 0.0), (True, "1", 0.0),
        (3.0, "3", 1.0), (3, "3.0", 1.0), (3, "3", 1.0), (0.5, "0.50", 1.0), (3, "4", 0.0),
        (1, "true", 0.0), ("true", "true", 1.0), ("3.0", "3", 0.0), (7, "seven", 0.0),
    ],
)  # fmt: skip
def test_what_is_no_text_is_compared_as_json(expected, text, value):
    assert exact_match(case(expected), answer(text)).value == value
