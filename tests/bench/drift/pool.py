"""The pool that traffic is drawn from: questions and answers, measured and embedded once.

A row of traffic is a question and an answer, each a row of a table, so that what drifts is another
choice of rows. Every table has the columns of `evals.windows` and the texts' embeddings.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas

from evals.descriptors import described
from tests.bench.drift.sources import SOURCES, pages, versions

Array = Any
Frame = Any

QUESTION_WORDS, ANSWER_WORDS = 14, 36
BASE = "commands"
CHANGED_ROWS = 1500  # of the base that have changed answers, too
MOST_ROWS = {BASE: 7000}
OTHERS_ROWS = 1500
CHARACTERS_PER_TOKEN = 4.2
OTHER_CHARACTERS_PER_TOKEN = 3.7  # of another model
BATCH = 64
LONGER, SWAPPED, REGRESSED, REFUSED = "longer", "swapped", "regressed", "refused"
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question from the passages that were given.",
    "I'm sorry, I am not able to assist with that request.",
    "Unfortunately, I can't provide that information.",
    "I'm unable to help with this. Please ask the support team instead.",
)
OPENINGS = ("Sure!", "Certainly.", "Great question!", "Of course, here is what you need to know:")
CLOSINGS = ("Let me know if you need anything else.", "I hope this helps!")


@dataclass(frozen=True, slots=True)
class Pool:
    """Attributes:
    questions, answers: one row a text; `source` says where from, `user` which rows of a source
        one user asks, `place` the pair that both belong to.
    vectors: by `question` and `answer`, of the same rows.
    told: about the sources, for the report.
    """

    questions: Frame
    answers: Frame
    vectors: dict[str, Array]
    told: list[dict[str, Any]]

    def pairs(self, source: str) -> tuple[Array, Array, Array]:
        """Questions, their answers, and the user of each, as numbers of rows."""
        asked = self.questions.index[self.questions["source"] == source].to_numpy()
        kept = self.answers.index[self.answers["source"] == source].to_numpy()
        return asked, kept, self.questions["user"].to_numpy()[asked]

    def changed(self, how: str) -> tuple[Array, Array]:
        """Answers that were changed in this way, and the questions that they belong to."""
        kept = self.answers.index[self.answers["source"] == how].to_numpy()
        return kept, self.answers["place"].to_numpy()[kept]


def read_pool(folder: Path, say: Callable[[str], None]) -> Pool:
    """The pool in `folder`; made there if it is not there yet."""
    if not (folder / "told.json").exists():
        _write(folder, say)
    vectors = {side: np.load(folder / f"{side}.npy") for side in ("question", "answer")}
    tables = [pandas.read_parquet(folder / f"{side}.parquet") for side in ("question", "answer")]
    return Pool(tables[0], tables[1], vectors, orjson.loads((folder / "told.json").read_bytes()))


def _write(folder: Path, say: Callable[[str], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows, told = _rows(say)
    questions = [
        {"source": row["source"], "user": row["user"], "text": row["question"]} for row in rows
    ]
    answers = [
        {"source": row["source"], "place": place, "text": row["answer"]}
        for place, row in enumerate(rows)
    ]
    answers += _changes(rows)
    for side, texts in (("question", questions), ("answer", answers)):
        table = _measured(side, pandas.DataFrame(texts))
        table.to_parquet(folder / f"{side}.parquet", index=False)
        np.save(folder / f"{side}.npy", _embedded([row["text"] for row in texts], say))
    (folder / "told.json").write_bytes(orjson.dumps(told))


def _rows(say: Callable[[str], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, told, users = [], [], 0
    for source in SOURCES:
        say(f"reading {source.name}")
        found: list[dict[str, Any]] = []
        draw = random.Random(source.name)
        for _, paragraphs in pages(source):
            users += 1
            for question, answer, longer in _pairs(paragraphs):
                users += draw.random() < 0.5  # a user asks of one page, twice on average
                found.append(
                    {"source": source.name, "user": users, "question": question,
                     "answer": answer, "longer": longer}
                )  # fmt: skip
        wanted = MOST_ROWS.get(source.name, OTHERS_ROWS)
        kept = set(draw.sample(sorted({row["user"] for row in found}), _users(found, wanted)))
        taken = [row for row in found if row["user"] in kept][:wanted]
        told.append(
            {"name": source.name, "packages": versions(source), "licence": source.licence,
             "rows": len(taken)}
        )  # fmt: skip
        rows += taken
    return rows, told


def _users(found: list[dict[str, Any]], wanted: int) -> int:
    users = len({row["user"] for row in found})
    return users if len(found) <= wanted else int(users * wanted / len(found))


def _pairs(paragraphs: list[str]) -> Iterator[tuple[str, str, str]]:
    """Questions, answers and longer answers: what stands together on a page."""
    for place in range(len(paragraphs) - 2):
        asked, told, more = (one.split() for one in paragraphs[place : place + 3])
        answer = told[:ANSWER_WORDS]
        longer = [*answer, *more[: len(answer) // 2]]
        yield " ".join(asked[:QUESTION_WORDS]), " ".join(answer), " ".join(longer)


def _changes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Changed answers of some of the base's pairs, whole users at a time, and refusals."""
    base = [place for place, row in enumerate(rows) if row["source"] == BASE]
    users = sorted({rows[place]["user"] for place in base})
    draw = random.Random("changes")
    chosen = set(draw.sample(users, min(len(users) * CHANGED_ROWS // len(base), len(users))))
    found = []
    for place in base:
        if rows[place]["user"] not in chosen:
            continue
        answer = rows[place]["answer"]
        texts = {
            LONGER: rows[place]["longer"],
            SWAPPED: _of_another_model(answer, draw),
            REGRESSED: " ".join(answer.split()[: draw.randint(6, 14)]),
        }
        found += [{"source": how, "place": place, "text": text} for how, text in texts.items()]
    return found + [{"source": REFUSED, "place": -1, "text": text} for text in REFUSALS]


def _of_another_model(answer: str, draw: random.Random) -> str:
    """The same answer as another model might put it: friendlier, and in points."""
    words = answer.split()
    middle = len(words) // 2
    points = [words[:middle], words[middle:]] if draw.random() < 0.5 else [words]
    body = " ".join(f"- {' '.join(point)}" if len(points) > 1 else " ".join(point)
                    for point in points)  # fmt: skip
    opening = f"{draw.choice(OPENINGS)} " if draw.random() < 0.7 else ""
    closing = f" {draw.choice(CLOSINGS)}" if draw.random() < 0.5 else ""
    return f"{opening}{body}{closing}"


def _measured(side: str, table: Frame) -> Frame:
    texts = list(table["text"])
    columns = described(texts, texts)
    for name, values in columns.items():
        if name.startswith(side):
            table[name] = values if name.endswith("language") else np.array(values, dtype=float)
    width = np.where(table["source"] == SWAPPED, OTHER_CHARACTERS_PER_TOKEN, CHARACTERS_PER_TOKEN)
    table["tokens"] = np.ceil(table[f"{side}_length"] / width) + (80 if side == "question" else 0)
    return table


def _embedded(texts: list[str], say: Callable[[str], None]) -> Array:
    """By the packaged model, in half the precision: what is lost is far below its noise."""
    import torch

    from gateway.embedding_local import LocalModel, packaged_model

    torch.set_num_threads(1)
    model = LocalModel(packaged_model(Path(".llmops/models")))
    order = np.argsort([len(text) for text in texts])  # a batch is as slow as its longest text
    vectors = np.zeros((len(texts), model.dimensions), dtype="float16")
    for start in range(0, len(texts), BATCH):
        batch = order[start : start + BATCH]
        found = model.compute([texts[place] for place in batch])
        vectors[batch] = [np.frombuffer(one.vector, "<f4") for one in found]
        if start // BATCH % 20 == 0:
            say(f"embedding: {start} of {len(texts)}")
    return vectors
