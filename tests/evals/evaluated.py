"""Evaluations made of values, for what is done with them afterwards."""

from collections.abc import Mapping, Sequence

from evals.evaluation import Coverage, Evaluation
from evals.records import Answer, Case, Score


def evaluation(
    values: Mapping[str, Sequence[float | None]],
    *,
    carrying: int | None = None,
    texts: Sequence[str] | None = None,
    reason: str = "it crashed",
    spoken: bool = True,
) -> Evaluation:
    """One answer a case; a value that is None failed, with `reason`."""
    count = len(next(iter(values.values())))
    texts = texts or [f"text {place}" for place in range(count)]
    names = [f"c{place}" for place in range(count)]
    scores = {
        metric: tuple(
            (Score(name, metric, one, reason if one is None else None),)
            for name, one in zip(names, given, strict=True)
        )
        for metric, given in values.items()
    }
    coverage = {
        metric: Coverage(
            count if carrying is None else carrying, sum(v is not None for v in given), count
        )
        for metric, given in values.items()
    }
    message = {"role": "user", "content": "a question"}
    return Evaluation(
        "asker", "f" * 64, "model",
        tuple(Case(name, (message,), f"right {name}") for name in names),
        tuple(
            (Answer(name, text, 5.0, cost_usd=0.001, target="up/model", request_id=f"r-{name}"),)
            for name, text in zip(names, texts, strict=True)
        ),
        scores, coverage, spoken=spoken,
    )  # fmt: skip
