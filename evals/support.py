"""Evidence that a passage supports a sentence, as a few numbers that need no judge.

The sentence is laid beside the stretch of the passages (a clause, or two in a row) that is nearest
to it: the few that share most words with it are compared by embedding. Then it is measured what of
the sentence that stretch lacks (words, numbers, names), and whether what both say is negated in one
of them only. `evals.groundedness` makes a probability of these.

The lists of words are English: in another language embedding, words, numbers and names still speak.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from evals.sentences import clauses

FEATURES = (
    "closeness",  # cosine of the embeddings
    "words_in_passage",  # share of the claim's content words that stand in the passage
    "numbers_lacking",  # how many of the claim's numbers the stretch lacks, at most 2
    "names_lacking",  # how many of its names and code words
    "exchanged",  # how literally it repeats the passage, where the stretch lacks a word of it
    "turned",  # how alike both are, where one has an odd number of negations more
    "opposed",  # how alike both are, where a word of one has its opposite in the other
)
CANDIDATES = 4  # stretches that are embedded for a claim; more find nothing better
MOST_LACKING = 2  # one more says nothing new
NEGATION_REACHES = 4  # words

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+(?:,\d{3})*(?:\.\d+)?|[,;:.()]")
_RAW = re.compile(r"[\w`.-]+")
_NAME = re.compile(
    r"`[^`]+`|\b\w+[_./:-]\w[\w./:-]*\b|\b[A-Z]\w*[A-Z0-9]\w*\b|(?<=[\w,;:] )[A-Z][a-z]+\b"
)
_LEAD = re.compile(
    r"^(?:according to [^:,]{3,60}|in short|in summary|based on [^:,]{3,60})[:,]\s*", re.IGNORECASE
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WRITTEN = {
    word: str(value)
    for value, word in enumerate(
        _words("two three four five six seven eight nine ten eleven twelve"), 2
    )
}
_NEGATIONS = frozenset(
    _words(
        "not no never none nothing nobody neither nor cannot without unable don't doesn't isn't"
        " aren't won't can't didn't wasn't weren't"
    )
)
_EMPTY = frozenset(
    _words(
        "a an the of to in on at by for with and or is are was were be been being it its that this"
        " these those as from than then so such which who whom whose what when where there here if"
        " else will would can could may might must should do does did has have had only also just"
        " very any some each every all both his her their they them we you i he she"
    )
)
_OPPOSITES = {
    "least": "most", "less": "more", "fewer": "more", "below": "above", "under": "over",
    "before": "after", "last": "first", "newest": "oldest", "unknown": "know",
    "invalid": "valid", "refused": "accepted", "refuses": "accepted", "rejected": "accepted",
    "rejects": "accepted", "deleted": "keep", "removed": "keep",
}  # fmt: skip
_SAME = {"known": "know", "kept": "keep", "sent": "send", "made": "make", "held": "hold"}
_ENDINGS = ("ations", "ation", "ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "er", "ion")


@dataclass(frozen=True)
class Stretch:
    """A piece of text, ready to be compared. Words are stems with a sign: False is negated."""

    text: str

    @cached_property
    def lowered(self) -> str:
        """In small letters."""
        return self.text.lower()

    @cached_property
    def signed(self) -> tuple[tuple[str, bool], ...]:
        """Content words and numbers in order, each with its sign."""
        return tuple(_signed(self.text))

    @cached_property
    def words(self) -> frozenset[str]:
        """The content words, without signs."""
        return frozenset(word for word, _ in self.signed)

    @cached_property
    def signs(self) -> Mapping[str, set[bool]]:
        """The signs that each word occurs with."""
        found: dict[str, set[bool]] = {}
        for word, sign in self.signed:
            found.setdefault(word, set()).add(sign)
        return found

    @cached_property
    def negations(self) -> int:
        """Words that negate."""
        return sum(word in _NEGATIONS for word in _WORD.findall(_plain(self.text)))

    @cached_property
    def runs(self) -> frozenset[tuple[str, ...]]:
        """All runs of three words as they are written."""
        raw = _RAW.findall(self.lowered.rstrip("."))
        return frozenset(zip(raw, raw[1:], raw[2:], strict=False))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Passages, and the stretches of them, each with the index of its passage."""

    passages: tuple[Stretch, ...]
    stretches: tuple[tuple[Stretch, int], ...]


def evidence_of(contexts: Sequence[str]) -> Evidence:
    """Take the passages apart."""
    stretches: list[tuple[Stretch, int]] = []
    for index, context in enumerate(contexts):
        parts = clauses(context)
        pairs = [f"{one} {other}" for one, other in pairwise(parts)]
        stretches += [(Stretch(text), index) for text in (*parts, *pairs)]
    return Evidence(tuple(map(Stretch, contexts)), tuple(stretches))


def claim_in(sentence: str) -> str:
    """The sentence without a lead such as `According to the documentation:`."""
    return _LEAD.sub("", sentence)


def candidates(said: Stretch, evidence: Evidence) -> list[int]:
    """Places of the stretches that share most words with the claim, shorter ones first."""

    def shared(place: int) -> tuple[float, float]:
        stretch = evidence.stretches[place][0]
        common = len(said.words & stretch.words)
        return common, common / max(len(stretch.words), 1)

    places = range(len(evidence.stretches))
    return sorted(places, key=shared, reverse=True)[:CANDIDATES]


def features(
    said: Stretch, evidence: Evidence, places: Sequence[int], closeness: Sequence[float]
) -> list[float]:
    """`FEATURES` of a claim; `closeness` is its cosine with the stretch at each of `places`."""
    total = max(len(said.words), 1)
    shares = [len(said.words & evidence.stretches[place][0].words) / total for place in places]
    best = max(range(len(places)), key=lambda place: shares[place] + closeness[place])
    nearest, index = evidence.stretches[places[best]]
    passage, share = evidence.passages[index], shares[best]
    names = [name.strip("`").lower() for name in _NAME.findall(said.text)]
    numbers = [word for word in said.words if word[0].isdigit()]
    opposed = any(
        word in nearest.signs and sign not in nearest.signs[word] for word, sign in said.signed
    )
    alike = share**4  # the more two texts say the same, the more a single turn of it counts
    literal = sum(run in passage.runs for run in said.runs) / max(len(said.runs), 1)
    return [
        float(closeness[best]),
        len(said.words & passage.words) / total,
        float(min(sum(one not in nearest.words for one in numbers), MOST_LACKING)),
        float(min(sum(one not in nearest.lowered for one in names), MOST_LACKING)),
        literal * bool(said.words - nearest.words),
        alike * ((said.negations + nearest.negations) % 2),
        alike * opposed,
    ]


def _signed(text: str) -> Iterator[tuple[str, bool]]:
    negated = 0  # words that the last negation still reaches
    for word in _WORD.findall(_plain(text)):
        if not word[0].isalnum():
            negated = 0
        elif word in _NEGATIONS:
            negated = NEGATION_REACHES
        elif word not in _EMPTY:
            yield _stem(_OPPOSITES.get(word, word)), (negated > 0) == (word in _OPPOSITES)
            negated = max(negated - 1, 0)


def _stem(word: str) -> str:
    if word in _WRITTEN:
        return _WRITTEN[word]
    word = _SAME.get(word, word)
    if word[0].isdigit():
        return word.replace(",", "")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
