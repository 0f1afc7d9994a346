"""Redaction sees strings as their readers do, and leaves valid JSON valid."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redaction import redact

LEAKS = [
    "ann@example.com",
    "jo.public+x@mail.example.org",
    "sk-abcdefghijklmnopqrstuvwx",
    "DE89370400440532013000",
    "DE89 3704 0044 0532 0130 00",
    "4111111111111111",
    "4111 1111 1111 1111",
    "+49 170 1234567",
]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("around", ["{}", "\n{}", "call {} now", "<{}>"])
def test_what_is_personal_goes(leak, around):
    body = orjson.dumps({"messages": [{"role": "user", "content": around.format(leak)}]})
    assert leak not in orjson.loads(redact(body))["messages"][0]["content"]


def test_an_escaped_address_goes_too():
    assert b"example.com" not in redact(b'{"a": "bob\\u0040example.com"}')


@given(st.recursive(st.text() | st.integers(-(2**53), 2**53), lambda x: st.lists(x, max_size=3)))
def test_json_stays_json_of_the_same_form(value):
    redacted = orjson.loads(redact(orjson.dumps({"v": value})))["v"]
    assert type(redacted) is type(value)


def test_ordinary_text_stays_as_it_is():
    body = orjson.dumps({"content": "In 2024 version 3.11.7 cost 12.50 for 1,000 tokens."})
    assert redact(body) == body


def test_what_is_not_json_is_redacted_as_text():
    assert redact(b"data: ann@example.com") == b"data: [email]"
