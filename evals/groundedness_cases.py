"""Labelled answers, made by rule from this project's documentation, to calibrate groundedness with.

    python -m evals.groundedness_cases > evals/golden/groundedness.jsonl

The source (`golden/groundedness_facts.yaml`) has passages and, in other words, statements that each
supports. A grounded answer is one to three of these statements or of the passage's own sentences.
An ungrounded one is the same with one sentence falsified: a number or a name exchanged, half the
time for another one of the same passage; the meaning turned round; a sentence of another passage
that was not retrieved; a plausible invention. So both kinds have the same words, lengths and form,
and only what is wrong tells them apart. Passages, not answers, are dealt to the two halves: nothing
that a method was fitted on is in the half that it is measured on.
"""

import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from evals.sentences import sentences

FACTS = Path(__file__).parent / "golden" / "groundedness_facts.yaml"
SEED = 20_261
CALIBRATION, HELD_OUT = "calibration", "held_out"
LEADS = ("", "", "", "According to the documentation: ", "In short: ")
LONGEST_EXCERPT = 45  # words
NEAR_SHARE = 0.5  # of exchanged numbers and names come from the same passage

# One meaning and its opposite; the first that fits a sentence is applied, so rare ones come first.
TURNED = (
    (r"\bno more than\b", "at least"), (r"\bat most\b", "at least"), (r"\bat least\b", "at most"),
    (r"\bup to\b", "no less than"), (r"\bmore than\b", "less than"),
    (r"\bover (?=\d|a )", "under "),
    (r"\babove\b", "below"), (r"\bless than\b", "more than"), (r"\bcannot\b", "can"),
    (r"\bmust not\b", "must"), (r"\bnever\b", "always"), (r"\bis not\b", "is"),
    (r"\bare not\b", "are"), (r"\bnot\b ", ""), (r"\bNo (\w+)\b", r"Every \1"),
    (r"\bnothing\b", "everything"), (r"\bNothing\b", "Everything"), (r"\bwithout\b", "with"),
    (r"\bonly after\b", "long before"), (r"\bafter\b", "before"), (r"\bbefore\b", "after"),
    (r"\brefused\b", "accepted"), (r"\brejected\b", "accepted"), (r"\baccepted\b", "refused"),
    (r"\boldest\b", "newest"), (r"\bfirst\b", "last"), (r"\bkept\b", "deleted"),
    (r"\bknown\b", "unknown"), (r"\bvalid\b", "invalid"), (r"\bsmall\b", "large"),
    (r"\bremoved\b", "kept"), (r"\bcan\b", "cannot"), (r"\bmay\b", "may not"),
    (r"\bmust\b", "need not"), (r"\bis\b", "is not"), (r"\bare\b", "are not"),
    (r"\bcosts(?= [\da])", "does not cost"), (r"\bneeds?\b", "does without"),
    (r"\bgoes\b", "never goes"),
)  # fmt: skip
# The same meaning in other words.
REWORDED = (
    (r" \([^()]*\)", ""), (r"\bat most\b", "no more than"), (r"\bis refused\b", "is turned down"),
    (r"\bare refused\b", "are turned down"), (r"\bstays\b", "remains"),
    (r"\bat once\b", "immediately"),
    (r"\bdoes not\b", "doesn't"), (r"\bdo not\b", "don't"), (r"\bcannot\b", "is unable to"),
    (r"\bneeds?\b", "requires"), (r"\bafterwards\b", "later"), (r"\bbegins\b", "starts"),
    (r"\bends\b", "finishes"), (r"\babout\b", "roughly"),
    (r"\bby default\b", "unless told otherwise"),
    (r"\bevery\b", "each"), (r"\bwhole\b", "entire"), (r"\bgets\b", "receives"),
    (r"\btakes\b", "requires"), (r"\bnever\b", "at no time"),
    (r"\btherefore\b", "for this reason"),
    (r"\bwithout\b", "with no"), (r"\bmay be\b", "can be"), (r"\bonly\b", "just"),
    (r"\bas well as\b", "and also"), (r"\bwhile\b", "as long as"), (r"\bkeeps\b", "retains"),
    (r"\bsays\b", "states"), (r"; ", ", and "),
)  # fmt: skip
GROUNDED = ("paraphrase", "excerpt", "reworded", "mixed", "paraphrase")
NUMBER = re.compile(r"(?<![\w.,`/:-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w`/-]|,\d)")
NAMES = re.compile(
    r"`[^`\s]{3,40}`|\b(?:SQLite|PostgreSQL|MLflow|Redis|Feast|DVC|vLLM|LiteLLM|nginx|aiohttp|httpx"
    r"|Alembic|DuckDB|MiniLM|supervisord|Newcombe|Student|Prometheus|HMAC-SHA256|SHA-256|NFC|torch"
    r"|shipper|controller|workers?|engine|gateway|splits?|adapters?|users?|tenants?|rows)\b"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage, what it says in its own words, and what it supports in others."""

    source: str
    text: str
    facts: tuple[str, ...]

    @property
    def excerpts(self) -> list[str]:
        """Sentences of its own that can stand alone."""
        return [one for one in sentences(self.text) if 6 <= len(one.split()) <= LONGEST_EXCERPT]


@dataclass(frozen=True, slots=True)
class Source:
    """All passages, the pool of names, and inventions by page."""

    passages: tuple[Passage, ...]
    names: tuple[str, ...]
    inventions: Mapping[str, Sequence[str]]


def load_source(path: Path = FACTS) -> Source:
    """Read the file of passages and statements."""
    content = yaml.safe_load(path.read_text())
    passages = tuple(
        Passage(one["source"], one["passage"], tuple(one["facts"])) for one in content["passages"]
    )
    names = sorted({name for one in passages for name in NAMES.findall(one.text)})
    return Source(passages, tuple(names), content["inventions"])


def build(source: Source, seed: int = SEED) -> list[dict[str, Any]]:
    """Every labelled answer; the same for the same source and seed."""
    rng = random.Random(seed)
    order = list(range(len(source.passages)))
    rng.shuffle(order)
    rows: list[dict[str, Any]] = []
    for place, index in enumerate(order):
        half = (CALIBRATION, HELD_OUT)[place % 2]
        for kind, answer, wrong in _answers(source, index, rng):
            rows.append(
                {
                    "case_id": f"grounding-{len(rows) + 1:04d}",
                    "answer": answer,
                    "retrieved_contexts": _contexts(source, index, kind, rng, wrong),
                    "grounded": wrong is None,
                    "unsupported": [] if wrong is None else [wrong],
                    "tags": {
                        "kind": kind,
                        "half": half,
                        "source": source.passages[index].source,
                        "passage": str(index),
                    },
                }
            )
    return rows


Made = tuple[str, str, str | None]  # kind, answer, the sentence that is wrong


def _answers(source: Source, index: int, rng: random.Random) -> Iterator[Made]:
    passage = source.passages[index]
    for kind in GROUNDED:
        yield kind, _told(_drawn(passage, kind, rng), rng), None
    for kind in ("number", "name", "turned", "other_passage", "invention"):
        parts = _drawn(passage, rng.choice(GROUNDED), rng)
        made = _falsified(source, index, kind, parts, rng)
        if made is not None:
            parts, wrong = made
            yield kind, _told(parts, rng), wrong


def _drawn(passage: Passage, kind: str, rng: random.Random) -> list[str]:
    pool = {
        "paraphrase": list(passage.facts),
        "excerpt": passage.excerpts or list(passage.facts),
        "reworded": [_reworded(one) for one in passage.excerpts or passage.facts],
        "mixed": [*passage.facts, *passage.excerpts],
    }[kind]
    count = min(rng.choice((1, 1, 2, 3)), len(pool))
    return rng.sample(pool, count)


def _reworded(part: str) -> str:
    """`part` with at most two of its turns of phrase exchanged."""
    left = 2
    for pattern, other in REWORDED:
        if left and re.search(pattern, part):
            part, left = re.sub(pattern, other, part, count=1), left - 1
    return part


def _told(parts: Sequence[str], rng: random.Random) -> str:
    return rng.choice(LEADS) + " ".join(parts)


def _falsified(
    source: Source, index: int, kind: str, parts: list[str], rng: random.Random
) -> tuple[list[str], str] | None:
    """The parts with one of them made wrong, and that one; None if none can be."""
    passage = source.passages[index]
    if kind in ("other_passage", "invention"):
        place = rng.randrange(len(parts))
        wrong = (
            _elsewhere(source, index, rng)
            if kind == "other_passage"
            else rng.choice(source.inventions[passage.source])
        )
        return [*parts[:place], wrong, *parts[place + 1 :]], wrong
    # Any statement of the passage will do where none of those drawn can be made wrong this way.
    others = [one for one in (*passage.facts, *passage.excerpts) if one not in parts]
    for part in (*parts, *rng.sample(others, len(others))):
        wrong_part = _made_wrong(source, passage, kind, part, rng)
        if wrong_part is not None:
            kept = [one for one in parts if one != part]
            return [*(kept[:-1] if part not in parts else kept), wrong_part], wrong_part
    return None


def _made_wrong(
    source: Source, passage: Passage, kind: str, part: str, rng: random.Random
) -> str | None:
    """The sentence `part` falsified; None where it has nothing to be falsified this way."""
    if kind == "turned":
        return next(
            (
                re.sub(pattern, other, part, count=1)
                for pattern, other in TURNED
                if re.search(pattern, part)
            ),
            None,
        )
    pattern = NUMBER if kind == "number" else NAMES
    found = list(pattern.finditer(part))
    if not found:
        return None
    match = rng.choice(found)
    near = [one for one in pattern.findall(passage.text) if one not in part]
    alike = [one for one in near if _alike(match.group(), one)]
    if alike and rng.random() < NEAR_SHARE:
        other = rng.choice(alike)
    elif kind == "number":
        other = _other_number(match.group(), rng)
    else:
        far = [one for one in source.names if one.strip("`") not in passage.text]
        alike = [one for one in far if _alike(match.group(), one)]
        if not alike:
            return None
        other = rng.choice(alike)
    return f"{part[: match.start()]}{other}{part[match.end() :]}"


def _other_number(text: str, rng: random.Random) -> str:
    value = float(text.replace(",", ""))
    changed = value * rng.choice((0.5, 2, 3, 10)) if value > 3 else value + rng.choice((1, 2, 3))
    return f"{changed:,.10g}" if "," in text or changed == int(changed) else f"{changed:.3g}"


def _alike(one: str, other: str) -> bool:
    """Whether two names can stand for each other: code for code, plural for plural."""
    if one.casefold().rstrip("s") == other.casefold().rstrip("s"):
        return False
    if NUMBER.fullmatch(one):
        return NUMBER.fullmatch(other) is not None
    kinds = [(text.startswith("`"), text[0].isupper(), text.endswith("s")) for text in (one, other)]
    return kinds[0] == kinds[1]


def _elsewhere(source: Source, index: int, rng: random.Random) -> str:
    """A statement of another passage, of the same page where it has another."""
    page = source.passages[index].source
    others = [one for number, one in enumerate(source.passages) if number != index]
    near = [one for one in others if one.source == page]
    return rng.choice(rng.choice(near or others).facts)


def _contexts(
    source: Source, index: int, kind: str, rng: random.Random, wrong: str | None
) -> list[str]:
    """The passage among one or two others; never one that supports what is to be wrong."""
    others = [
        one.text
        for number, one in enumerate(source.passages)
        if number != index and (kind != "other_passage" or wrong not in one.facts)
    ]
    found = [source.passages[index].text, *rng.sample(others, rng.choice((1, 2)))]
    rng.shuffle(found)
    return found


def main() -> None:
    """Write the labelled answers to standard output, one JSON object a line."""
    for row in build(load_source()):
        sys.stdout.write(orjson.dumps(row).decode() + "\n")


if __name__ == "__main__":
    main()
