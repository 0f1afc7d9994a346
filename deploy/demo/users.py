"""Simulated end users: what they ask, and what they think of the answer.

A user sees the text of the reply and nothing else: all that it is given is a callable from messages
to text, so it cannot know which variant answered. What it does about a reply is drawn from the
seed, its id and the number of its visit, before the reply is there: a seed replays whatever the
order in which replies come, and the reply has no say in noise or silence.
"""

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from evals.extraction import answer_text, is_right, training_pool
from evals.records import Case

Ask = Callable[[Sequence[Mapping[str, Any]]], Awaitable[str]]
POOL_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """How users judge; the same for everybody, fixed before the first request.

    A reply is right if its JSON equals what the user wrote about. A user says `helpful` true to a
    right reply and false to another, with these exceptions:

    Attributes:
        noise: share of the judgements that are flipped.
        silence: share of the requests that get no feedback at all.
        corrects: share of the judgements `helpful` false that come with the right JSON.
        returns: share of the users who come back, once, with another text.
    """

    noise: float = 0.10
    silence: float = 0.30
    corrects: float = 0.90
    returns: float = 0.30


@dataclass(frozen=True, slots=True)
class Mood:
    """What was drawn for one visit, before the reply."""

    silent: bool
    flips: bool
    corrects: bool


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a user makes of one reply.

    Attributes:
        right: what it really was; the user keeps it, the report counts it, nobody is sent it.
        helpful: what the user says; None: nothing.
        correction: the answer as it should have been, or None.
    """

    right: bool
    helpful: bool | None
    correction: str | None


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """One user: an id and the texts it will ask about, one a visit."""

    user_id: str
    cases: tuple[Case, ...]
    rule: Rule
    seed: int

    async def visit(self, number: int, ask: Ask) -> Opinion:
        """Ask about text `number` (from 0) and judge the reply's text."""
        mood = self.mood(number)
        case = self.cases[number]
        return judged(await ask(case.messages), case.expected, mood)

    def mood(self, number: int) -> Mood:
        """What is drawn for visit `number`; it does not depend on any reply."""
        drawn = random.Random(f"{self.seed}/{self.user_id}/{number}")
        return Mood(
            silent=drawn.random() < self.rule.silence,
            flips=drawn.random() < self.rule.noise,
            corrects=drawn.random() < self.rule.corrects,
        )


def judged(text: str, expected: Any, mood: Mood) -> Opinion:
    """The rule, applied to one reply."""
    right = is_right(text, expected)
    if mood.silent:
        return Opinion(right, None, None)
    helpful = right != mood.flips
    correction = answer_text(expected) if not helpful and mood.corrects else None
    return Opinion(right, helpful, correction)


def arrivals(seed: int, rule: Rule) -> Iterator[SimulatedUser]:
    """Users without end: `demo-<seed>-u001`, `…-u002`, …, each with texts of its own."""
    texts = _texts(seed)
    drawn = random.Random(f"visits/{seed}")
    for number in count(1):
        visits = 2 if drawn.random() < rule.returns else 1
        cases = tuple(next(texts) for _ in range(visits))
        yield SimulatedUser(f"demo-{seed}-u{number:03}", cases, rule, seed)


def _texts(seed: int) -> Iterator[Case]:
    draws = random.Random(f"texts/{seed}")
    while True:
        yield from training_pool(draws.getrandbits(32), POOL_AT_ONCE)
