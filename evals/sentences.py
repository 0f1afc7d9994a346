"""Text taken apart into sentences, without a model: prose, Markdown lists and tables.

A sentence ends at `.`, `!` or `?` before a space and something that can begin one, at the end of a
line that is followed by a list item, a table's row or an empty line, and at the marks of Chinese
and Japanese. Abbreviations and numbers do not end one.
"""

import re

SHORTEST_WORDS = 2  # fewer are part of what is beside them: "Yes.", a heading's number

_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*•|#]|\d+[.)]\s))")
_MARKS = re.compile(r"^\s*(?:[-*•]\s+|#+\s*|\d+[.)]\s+|>\s*)", re.MULTILINE)
_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]*\u201d\u2019]))\s+(?=[\"'\u201c\u2018(\[*]*[A-Z0-9À-ÞА-Я`])"
    r"|(?<=[a-z)`]{2}[.!?])\s+(?=[a-z]+[A-Z]|[a-z]+ )"  # names in small letters begin one too
    r"|(?<=[\u3002\uff01\uff1f])\s*"  # the marks of Chinese and Japanese
)
_CLAUSE = re.compile(r"(?<=[;:])\s+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|no|fig|dr|mr|mrs|ms|st|z\.b|bzw|ca)|\b[A-Z])\.$",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of `text`, in order, without white space around them."""
    found: list[str] = []
    for block in _BLOCK.split(text):
        plain = " ".join(_MARKS.sub("", block).split())
        if plain and not (set(plain) <= set("|-: ") and "-" in plain):  # a table's ruler
            found += _joined(_END.split(plain))
    return found


def clauses(text: str) -> list[str]:
    """Sentences, taken apart further at semicolons and colons: what a claim is compared with."""
    return [part for sentence in sentences(text) for part in _merged(_CLAUSE.split(sentence), " ")]


def _joined(parts: list[str]) -> list[str]:
    """Put together again what an abbreviation took apart."""
    found: list[str] = []
    for part in parts:
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return _merged(found, " ")


def _merged(parts: list[str], between: str) -> list[str]:
    """Parts that are too short to say anything go to the one before."""
    found: list[str] = []
    for part in filter(None, (one.strip() for one in parts)):
        if found and len(part.split()) < SHORTEST_WORDS and part.isascii():
            found[-1] += between + part
        else:
            found.append(part)
    return found
