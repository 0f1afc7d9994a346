"""The signals of drift: in which respects a window is compared with its reference.

Texts are compared by a classifier that is trained to tell window from reference: it finds whatever
has changed, if enough has. Embeddings are compared by their means, which finds a change among known
topics, and by counting rows that are unlike anything in the reference, which finds a new topic or
another language while it is still a small part. The rest are descriptors, one column of a window
each. `evals.comparison` measures them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """How a signal is measured."""

    TEXT = "text"
    VECTORS = "vectors"
    UNLIKE = "unlike"
    NUMBER = "number"
    SHARE = "share"
    LABEL = "label"
    CONCEPT = "concept"  # of predictions whose outcome is known


@dataclass(frozen=True, slots=True)
class Signal:
    """One respect. `least`: the smallest change that matters, in the measure's own unit."""

    name: str
    kind: Kind
    column: str
    least: float


SIGNALS: Sequence[Signal] = (
    Signal("question_text", Kind.TEXT, "question", 0.05),
    Signal("answer_text", Kind.TEXT, "answer", 0.05),
    Signal("question_embedding", Kind.VECTORS, "question", 0.2),
    Signal("answer_embedding", Kind.VECTORS, "answer", 0.2),
    Signal("question_unlike", Kind.UNLIKE, "question", 0.05),
    Signal("answer_unlike", Kind.UNLIKE, "answer", 0.05),
    Signal("question_language", Kind.LABEL, "question_language", 0.05),
    Signal("answer_language", Kind.LABEL, "answer_language", 0.05),
    Signal("question_length", Kind.NUMBER, "question_length", 0.1),
    Signal("question_words", Kind.NUMBER, "question_words", 0.1),
    Signal("question_non_letters", Kind.NUMBER, "question_non_letters", 0.1),
    Signal("answer_length", Kind.NUMBER, "answer_length", 0.1),
    Signal("answer_words", Kind.NUMBER, "answer_words", 0.1),
    Signal("answer_non_letters", Kind.NUMBER, "answer_non_letters", 0.1),
    Signal("answer_refused", Kind.SHARE, "answer_refused", 0.03),
    Signal("retrieval_empty", Kind.SHARE, "retrieval_empty", 0.05),
    Signal("input_tokens", Kind.NUMBER, "input_tokens", 0.1),
    Signal("output_tokens", Kind.NUMBER, "output_tokens", 0.1),
    Signal("cost_usd", Kind.NUMBER, "cost_usd", 0.1),
)


# A score is never above it: a smallest change as large would never be reached.
REACH: Mapping[Kind, float] = MappingProxyType(
    {one: {Kind.TEXT: 0.5, Kind.VECTORS: math.inf}.get(one, 1.0) for one in Kind}
)
