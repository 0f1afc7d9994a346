"""Fit groundedness on labelled answers, and measure it on others.

    python -m evals.groundedness_fit

fits a ridge logistic regression on the sentences of the half `calibration` of
`golden/groundedness.jsonl`, writes `groundedness_weights.json`, and prints what the half `held_out`
says of it. The embeddings are computed here, by the packaged MiniLM.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from evals.agreement import Estimate, area, area_estimate
from evals.groundedness import WEIGHTS, Embed, Weights, claims_of, compare, embedded, groundedness
from evals.groundedness_cases import CALIBRATION, HELD_OUT
from evals.records import Answer, Case
from evals.support import FEATURES

LABELLED = Path(__file__).parent / "golden" / "groundedness.jsonl"
RIDGE = 10.0  # of standardized features
STEPS = 30


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer that is grounded in its contexts, or not.

    Attributes:
        unsupported: the sentences that make it ungrounded.
        kind: how it was made; group: the passage that it is about.
    """

    case_id: str
    answer: str
    contexts: tuple[str, ...]
    grounded: bool
    unsupported: tuple[str, ...]
    kind: str
    half: str
    group: str

    @property
    def sample(self) -> tuple[Case, Answer]:
        """As scorers take it."""
        case = Case(self.case_id, (), None, retrieved_contexts=self.contexts)
        return case, Answer(self.case_id, self.answer, 0.0)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on answers that nothing was fitted on.

    Attributes:
        area: of the value, under the ROC curve, grounded against ungrounded.
        by_kind: the same for each way of making an answer ungrounded, against all grounded ones.
        sentences: of single sentences.
    """

    area: Estimate
    by_kind: dict[str, float]
    sentences: float
    grounded: int
    ungrounded: int


def load_labelled(path: Path = LABELLED) -> list[Labelled]:
    """The labelled answers of a file."""
    return [
        Labelled(
            case_id=row["case_id"],
            answer=row["answer"],
            contexts=tuple(row["retrieved_contexts"]),
            grounded=row["grounded"],
            unsupported=tuple(row["unsupported"]),
            kind=row["tags"]["kind"],
            half=row["tags"]["half"],
            group=row["tags"]["passage"],
        )
        for row in map(orjson.loads, path.read_bytes().splitlines())
    ]


def fit(labelled: Sequence[Labelled], embed: Embed) -> Weights:
    """Weights from the sentences of the labelled answers."""
    import numpy as np

    rows = list(_sentences(labelled, embed))
    values = np.array([row for row, _ in rows])
    labels = np.array([float(label) for _, label in rows])
    middle, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1
    design = np.column_stack([np.ones(len(rows)), (values - middle) / scale])
    penalty = np.diag([0.0] + [RIDGE] * values.shape[1])
    found = np.zeros(design.shape[1])
    for _ in range(STEPS):  # Newton's method
        chance = 1 / (1 + np.exp(-design @ found))
        slope = design.T @ (labels - chance) - penalty @ found
        curve = (design.T * (chance * (1 - chance))) @ design + penalty
        found = found + np.linalg.solve(curve, slope)
    weights = found[1:] / scale
    return Weights(float(found[0] - weights @ middle), tuple(map(float, weights)))


def measure(labelled: Sequence[Labelled], weights: Weights, embed: Embed) -> Figures:
    """How well groundedness tells the labelled answers apart."""
    scores = groundedness([one.sample for one in labelled], embed, weights)
    values = [float(score.value or 0.0) for score in scores]
    grounded = [value for value, one in zip(values, labelled, strict=True) if one.grounded]
    by_kind: dict[str, list[float]] = {}
    for value, one in zip(values, labelled, strict=True):
        if not one.grounded:
            by_kind.setdefault(one.kind, []).append(value)
    rows = [(weights.probability(row), label) for row, label in _sentences(labelled, embed)]
    return Figures(
        area=area_estimate(
            values, [one.grounded for one in labelled], [one.group for one in labelled]
        ),
        by_kind={kind: area(grounded, found) for kind, found in sorted(by_kind.items())},
        sentences=area([p for p, label in rows if label], [p for p, label in rows if not label]),
        grounded=len(grounded),
        ungrounded=len(labelled) - len(grounded),
    )


def _sentences(labelled: Sequence[Labelled], embed: Embed) -> Iterator[tuple[list[float], bool]]:
    """The features of every sentence, and whether it is supported."""
    compared = [compare(claims_of(one.answer), one.contexts) for one in labelled]
    vectors = embedded(compared, embed)
    for one, claims in zip(labelled, compared, strict=True):
        for claim in claims:
            text = claim.claim.text
            wrong = any(text in other or other in text for other in one.unsupported)
            yield claim.features(vectors), not wrong


def packaged_embedder(models: Path) -> Embed:
    """MiniLM from its package, in this process; every text is computed once."""
    import numpy as np

    from gateway.embedding_local import LocalModel, packaged_model

    model, known = LocalModel(packaged_model(models)), dict[str, Any]()

    def embed(texts: Sequence[str]) -> Any:
        fresh = sorted({text for text in texts if text not in known}, key=len)
        for start in range(0, len(fresh), 64):
            batch = fresh[start : start + 64]
            for text, found in zip(batch, model.compute(batch), strict=True):
                known[text] = np.frombuffer(found.vector, "<f4")
        return np.stack([known[text] for text in texts])

    return embed


def main() -> None:
    """Fit, write the weights, measure, print."""
    from gateway.settings import load_settings

    labelled = load_labelled()
    embed = packaged_embedder(load_settings().home / "models")
    weights = fit([one for one in labelled if one.half == CALIBRATION], embed)
    named = dict(zip(FEATURES, weights.weights, strict=True))
    content = {"intercept": weights.intercept, "weights": named}
    WEIGHTS.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    figures = measure([one for one in labelled if one.half == HELD_OUT], weights, embed)
    sys.stdout.write(f"{orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()}\n{figures}\n")


if __name__ == "__main__":
    main()
