"""What is measured of every logged question and answer: plain numbers and labels, computed offline.

Each is one column of a window (`evals.windows`). A text that is missing has no value.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from evals.language import language_of
from evals.refusals import is_refusal

Descriptor = Callable[[str], float | str]
_LETTERS = re.compile(r"[^\W\d_]+")


def length(text: str) -> float:
    """Characters."""
    return float(len(text))


def words(text: str) -> float:
    """Words, as white space divides them."""
    return float(len(text.split()))


def non_letters(text: str) -> float:
    """Share of characters that are neither letters nor white space."""
    if not text:
        return 0.0
    printed = sum(map(len, text.split()))
    return (printed - sum(map(len, _LETTERS.findall(text)))) / len(text)


def refused(text: str) -> float:
    """1 if the answer declines to answer, else 0."""
    return float(is_refusal(text))


OF_QUESTIONS: Mapping[str, Descriptor] = MappingProxyType(
    {"length": length, "words": words, "non_letters": non_letters, "language": language_of}
)
OF_ANSWERS: Mapping[str, Descriptor] = MappingProxyType({**OF_QUESTIONS, "refused": refused})


def described(questions: list[str | None], answers: list[str | None]) -> dict[str, list[object]]:
    """Columns `question_…` and `answer_…`, a value for each text."""
    columns: dict[str, list[object]] = {}
    for side, texts, wanted in (
        ("question", questions, OF_QUESTIONS),
        ("answer", answers, OF_ANSWERS),
    ):
        for name, descriptor in wanted.items():
            columns[f"{side}_{name}"] = [
                None if text is None else descriptor(text) for text in texts
            ]
    return columns
