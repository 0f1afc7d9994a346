"""Simulated traffic: rows of the pool as a window of the request log holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from evals.comparison import Comparison, Sampled, coded, sample
from tests.bench.drift.pool import BASE, LONGER, REFUSED, REGRESSED, SWAPPED, Pool

Array = Any
Frame = Any
Random = np.random.Generator

USD_PER_TOKEN = {"input": 0.15e-6, "output": 0.6e-6}
REFUSED_SHARE, EMPTY_SHARE = 0.02, 0.03
SIDES = ("question", "answer")
COLUMNS = ("length", "words", "non_letters", "language")


@dataclass(frozen=True, slots=True)
class Change:
    """How traffic drifts. Shares are of requests; whole users change.

    Attributes:
        source: other texts, for this share of requests.
        answers: how all answers are changed, or None.
    """

    name: str
    source: str | None = None
    share: float = 0.0
    answers: str | None = None
    refused: float = REFUSED_SHARE
    empty: float = EMPTY_SHARE


STEADY = Change("steady")
CHANGES = (
    Change("topic: this project's documentation, 20 %", "project", 0.2),
    Change("topic: openssl, 20 %", "openssl", 0.2),
    Change("topic: the C library, 20 %", "c-library", 0.2),
    Change("language: German, 20 %", "german", 0.2),
    Change("language: French, 20 %", "french", 0.2),
    Change("length: answers half as long again", answers=LONGER),
    Change("refusals: 2 % to 10 %", refused=0.1),
    Change("empty retrieval: 3 % to 15 %", empty=0.15),
    Change("model swap (by rule)", answers=SWAPPED),
    Change("prompt regression (by rule)", answers=REGRESSED, refused=0.06),
)
MIXES = tuple(change for change in CHANGES if change.source is not None)


@dataclass(frozen=True, slots=True)
class Rows:
    """Requests in their order: rows of the pool's tables, users, and whether nothing was found."""

    questions: Array
    answers: Array
    users: Array
    empty: Array

    def __len__(self) -> int:
        return len(self.questions)

    def last(self, count: int) -> "Rows":
        """The newest ones."""
        return Rows(*(one[-count:] for one in self.columns()))

    def and_then(self, others: "Rows") -> "Rows":
        """Both, one after the other."""
        pairs = zip(self.columns(), others.columns(), strict=True)
        return Rows(*(np.concatenate(pair) for pair in pairs))

    def columns(self) -> tuple[Array, ...]:
        """All of it."""
        return self.questions, self.answers, self.users, self.empty


class Users:
    """Users of one kind, each with the rows that one user asks."""

    def __init__(self, questions: Array, answers: Array, users: Array):
        order = np.argsort(users, kind="stable")
        self._questions, self._answers = questions[order], answers[order]
        _, self._starts, self._sizes = np.unique(
            users[order], return_index=True, return_counts=True
        )

    def __len__(self) -> int:
        return len(self._starts)

    def apart(self, rows: int, random: Random) -> tuple["Users", "Users"]:
        """Some that have so many rows together, and the others."""
        order = random.permutation(len(self))
        enough = int(np.searchsorted(np.cumsum(self._sizes[order]), rows)) + 1
        return self._of(order[:enough]), self._of(order[enough:])

    def every(self) -> tuple[Array, Array, Array]:
        """All rows once: questions, answers, users."""
        users = np.repeat(np.arange(len(self)), self._sizes)
        return self._questions, self._answers, users

    def _of(self, chosen: Array) -> "Users":
        users = np.repeat(chosen, self._sizes[chosen])
        places = self._places(chosen)
        return Users(self._questions[places], self._answers[places], users)

    def draw(self, rows: int, random: Random) -> tuple[Array, Array, Array]:
        """Users at random, again and again, until there are so many rows: questions, answers, and
        the number of the draw that each is from."""
        chosen = random.integers(len(self), size=rows)
        sizes = self._sizes[chosen]
        enough = int(np.searchsorted(np.cumsum(sizes), rows)) + 1
        places = self._places(chosen[:enough])[:rows]
        draws = np.repeat(np.arange(enough), sizes[:enough])[:rows]
        return self._questions[places], self._answers[places], draws

    def _places(self, chosen: Array) -> Array:
        sizes = self._sizes[chosen]
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        return np.repeat(self._starts[chosen], sizes) + within


class Traffic:
    """Draws requests, each user with an id of its own. One for each trial."""

    def __init__(self, pool: Pool, random: Random):
        self._pool = pool
        self._random = random
        self._users = 0
        self._refusals = pool.answers.index[pool.answers["source"] == REFUSED].to_numpy()
        self._base = Users(*pool.pairs(BASE))

    def apart(self, rows: int) -> Rows:
        """A reference of steady traffic whose texts do not come again."""
        first, self._base = self._base.apart(rows, self._random)
        return self._whole([self._numbered(first.every())], STEADY)

    def draw(self, rows: int, change: Change) -> Rows:
        """So many requests."""
        other = round(rows * change.share)
        parts = [self._numbered(self._changed(change).draw(rows - other, self._random))]
        if other and change.source is not None:
            strangers = Users(*self._pool.pairs(change.source))
            parts.append(self._numbered(strangers.draw(other, self._random)))
        return self._whole(parts, change)

    def _changed(self, change: Change) -> Users:
        if change.answers is None:
            return self._base
        kept, asked = self._pool.changed(change.answers)
        return Users(asked, kept, self._pool.questions["user"].to_numpy()[asked])

    def _numbered(self, part: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        questions, answers, draws = part
        numbers = draws + self._users
        self._users += len(draws)
        return questions, answers, numbers

    def _whole(self, parts: Sequence[tuple[Array, Array, Array]], change: Change) -> Rows:
        """In random order, with refusals and with retrievals that found nothing."""
        questions, answers, users = (np.concatenate(one) for one in zip(*parts, strict=True))
        rows = len(questions)
        order = self._random.permutation(rows)
        refused = self._random.random(rows) < change.refused
        answers = np.where(refused, self._random.choice(self._refusals, rows), answers[order])
        empty = (self._random.random(rows) < change.empty).astype(float)
        return Rows(questions[order], answers, users[order], empty)


class Windows:
    """Rows as tables, and comparisons of them."""

    def __init__(self, pool: Pool, vectors: dict[str, Array]):
        self._vectors = vectors
        self._columns = {
            f"{side}_{name}": table[f"{side}_{name}"].to_numpy()
            for side, table in zip(SIDES, (pool.questions, pool.answers), strict=True)
            for name in COLUMNS
        }
        self._columns["answer_refused"] = pool.answers["answer_refused"].to_numpy()
        self._texts = (
            pool.questions["text"].to_numpy(dtype=object),
            pool.answers["text"].to_numpy(dtype=object),
        )
        self._tokens = pool.questions["tokens"].to_numpy(), pool.answers["tokens"].to_numpy()

    def frame(self, rows: Rows, start: int) -> Frame:
        """The rows as `evals.windows.read_window` gives them, from this moment on."""
        chosen = {"question": rows.questions, "answer": rows.answers}
        tokens = self._tokens[0][rows.questions], self._tokens[1][rows.answers]
        columns: dict[str, Any] = {
            "request_id": [f"r{start}{place:06d}" for place in range(len(rows))],
            "ts": start + np.arange(len(rows)) * 1_000_000,
            "unit": [f"u{user:011d}" for user in rows.users],
            "question": self._texts[0][rows.questions],
            "answer": self._texts[1][rows.answers],
            "retrieval_empty": rows.empty,
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "cost_usd": tokens[0] * USD_PER_TOKEN["input"] + tokens[1] * USD_PER_TOKEN["output"],
        }
        for name, values in self._columns.items():
            columns[name] = values[chosen[name.partition("_")[0]]]
        return pandas.DataFrame(columns)

    def comparison(self, sides: Sequence[tuple[Rows, Frame]], seed: int) -> Comparison:
        """Reference and window, each as rows and as a table. All rows are in the samples."""
        old, new = coded(sides[0][1], sides[1][1])
        texts = {
            side: (sample(old, side, len(old), seed), sample(new, side, len(new), seed))
            for side in SIDES
        }
        vectors = {
            side: (
                self._embedded(pair[0], side, sides[0][0]),
                self._embedded(pair[1], side, sides[1][0]),
            )
            for side, pair in texts.items()
        }
        return Comparison(old, new, texts, vectors, seed)

    def _embedded(self, sampled: Sampled, side: str, rows: Rows) -> Sampled:
        chosen = rows.questions if side == "question" else rows.answers
        vectors = self._vectors[side][chosen].astype("float32")
        return Sampled(sampled.texts, sampled.units, vectors)
