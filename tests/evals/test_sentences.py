"""Sentences and clauses: nothing is lost, and what is no end does not end one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.sentences import clauses, sentences


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One thing. Another thing!", ["One thing.", "Another thing!"]),
        ("It takes 0.3 s to start. Then it runs.", ["It takes 0.3 s to start.", "Then it runs."]),
        ("See e.g. MLflow for that. It helps.", ["See e.g. MLflow for that.", "It helps."]),
        ("It says no port.\n\n- one item\n- two", ["It says no port.", "one item", "two"]),
        ("Use `llmops up`. `make down` stops it.", ["Use `llmops up`.", "`make down` stops it."]),
        ("# Keys\nA key is secret.", ["Keys A key is secret."]),
        ("| key | is |\n| --- | --- |\n| port | 4000 |", ["| key | is |", "| port | 4000 |"]),
        ("Das ist so. Übrigens auch das.", ["Das ist so.", "Übrigens auch das."]),
        ("它监听端口4000。没有别的。", ["它监听端口4000。", "没有别的。"]),
        ("Yes. It is so.", ["Yes.", "It is so."]),
        ("It is so. Yes.", ["It is so. Yes."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_sentences(text, found):
    assert sentences(text) == found


def test_clauses_end_at_semicolons_too():
    text = "The key is kept; its digest is not: that is the rule. Next one here."
    assert clauses(text) == [
        "The key is kept;",
        "its digest is not:",
        "that is the rule.",
        "Next one here.",
    ]


@given(st.text(st.sampled_from("aB.!?;: \n'\"`"), max_size=80))
def test_nothing_but_white_space_is_lost(text):
    for taken_apart in (sentences(text), clauses(text)):
        assert "".join("".join(one.split()) for one in taken_apart) == "".join(text.split())
