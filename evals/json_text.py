"""Answers that should be JSON: read them strictly, and compare what they say.

Equality is JSON's, not Python's: `true` is not `1`, but `1` is `1.0`; the order of an object's keys
and white space around tokens do not count.
"""

from typing import Any

import orjson


def read_json(text: str) -> Any:
    """The value of a JSON text; ValueError if `text` is anything else (NaN included)."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
