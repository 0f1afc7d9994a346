"""The extraction task: a sentence in, the person's name, job and city out, as one line of JSON.

Whether an answer is right is checked by rule, so the task measures the whole loop without a judge.
Every request has the same form, for whichever model answers: the engine is held to the shape of
the record (vLLM's structured outputs), so that a model is judged on what it understood, not on
whether it writes JSON. The shape has no white space, because every token is paid for: a right
answer has at most `MAX_TOKENS` tokens of SmolLM2's vocabulary, with the end token.

Sentences are made from lists of words, always the same ones from the same seed. The held-out cases
in `golden/extraction.jsonl` come from the half of the lists that training never sees.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from evals.cases import load_cases
from evals.extraction_words import HELD_OUT, MONTHS, TRAINING, Half
from evals.json_text import read_json, same_json
from evals.records import Case

SYSTEM = "Extract the person's name, job and city as JSON."
MAX_TOKENS = 24
# The bounds keep a model that invents an endless word within the tokens.
SHAPE = r'\{"name":"[A-Z][a-z]{1,13}","job":"[a-z]{2,14}","city":"[A-Z][a-z]{1,13}"\}'
PARAMETERS: Mapping[str, Any] = {
    "temperature": 0,
    "max_tokens": MAX_TOKENS,
    "structured_outputs": {"regex": SHAPE},
}

GOLDEN = Path(__file__).parent / "golden" / "extraction.jsonl"
HELD_OUT_SEED, HELD_OUT_SIZE = 20_251, 240
POOL_LIMIT = 100_000
Drawn = tuple[str, dict[str, str], dict[str, str]]  # sentence, right answer, tags
YEARS = (1990, 2023)


def request_body(model: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of the chat request that asks `model`; equal for equal arguments."""
    return {"model": model, "messages": [dict(message) for message in messages], **PARAMETERS}


def messages_for(sentence: str) -> tuple[Mapping[str, str], ...]:
    """The messages that ask about a sentence."""
    return ({"role": "system", "content": SYSTEM}, {"role": "user", "content": sentence})


def answer_text(expected: Mapping[str, str]) -> str:
    """The right answer as text, in the shape that requests ask for: what a model is to learn."""
    return orjson.dumps(expected).decode()


def is_right(text: str, expected: Any) -> bool:
    """Whether an answer is JSON and says what is expected."""
    try:
        return same_json(read_json(text), expected)
    except ValueError:
        return False


def training_pool(seed: int, size: int) -> list[Case]:
    """`size` distinct sentences of the training half; a smaller pool is a larger one's beginning.

    Every wording comes equally often. Raises ValueError above `POOL_LIMIT` sentences.
    """
    if not 0 <= size <= POOL_LIMIT:
        raise ValueError(f"training_pool: size {size}: 0 to {POOL_LIMIT} sentences can be made")
    return _cases(TRAINING, f"pool-{seed}", seed, size)


def held_out() -> list[Case]:
    """The 240 cases that models are judged by."""
    return load_cases(GOLDEN)


def make_held_out() -> list[Case]:
    """The held-out cases as the rule makes them; `golden/extraction.jsonl` holds the result."""
    return _cases(HELD_OUT, "extraction", HELD_OUT_SEED, HELD_OUT_SIZE)


def _cases(half: Half, prefix: str, seed: int, size: int) -> list[Case]:
    found: dict[str, Case] = {}
    drawn = _draws(half, random.Random(seed))
    while len(found) < size:
        sentence, expected, tags = next(drawn)
        if sentence not in found:
            case_id = f"{prefix}-{len(found) + 1:04}"
            found[sentence] = Case(case_id, messages_for(sentence), expected, tags)
    return list(found.values())


def _draws(half: Half, draw: random.Random) -> Iterator[Drawn]:
    """Sentences without end, each with its right answer and its tags; one round uses each wording.

    Every sentence takes the same number of draws, so that a wording's places do not move the rest.
    """
    wordings = [("plain", wording) for wording in half.plain]
    wordings += [("distracting", wording) for wording in half.distracting]
    while True:
        draw.shuffle(wordings)
        for kind, wording in wordings:
            name, other = draw.sample(half.names, 2)
            city, elsewhere = draw.sample(half.cities, 2)
            job, year = draw.choice(half.jobs), draw.randint(*YEARS)
            date = f"{draw.randint(1, 28)} {draw.choice(MONTHS)}"
            places = {"n": name, "o": other, "c": city, "p": elsewhere, "j": job, "y": year}
            sentence = wording.format(**places, d=date, a=with_article(job))
            yield sentence, {"name": name, "job": job, "city": city}, {"wording": kind}


def with_article(job: str) -> str:
    """`a baker`, `an usher`: right for every job in the lists."""
    return f"an {job}" if job[0] in "aeiou" else f"a {job}"
