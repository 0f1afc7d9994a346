"""What a predicted probability costs once its label is known."""

from typing import Any

import orjson


def probability_of(response: str | None) -> float | None:
    """The probability that a logged answer gave; None unless it gave exactly one: feedback is on a
    request, and of several predictions nobody could tell which one it is about."""
    try:
        body = orjson.loads(response) if response else None
    except orjson.JSONDecodeError:
        return None
    predictions = body.get("predictions") if isinstance(body, dict) else None
    if not isinstance(predictions, list) or len(predictions) != 1:
        return None
    first = predictions[0]
    found = first.get("probability") if isinstance(first, dict) else None
    return _share(found)


def brier(probability: float | None, label: Any) -> float | None:
    """The square of the distance between a probability and its label, 0 to 1 (Brier 1950); None
    where one of the two is not known."""
    if probability is None or not isinstance(label, bool):
        return None
    return (probability - float(label)) ** 2


def _share(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return float(value)
