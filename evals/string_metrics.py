"""Ragas' metrics that compare an answer with a reference by their strings, without a judge.

They take seconds to import and are asynchronous; both stays in here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from evals.records import Answer, Case, Score
from gateway.settings import decline_telemetry

RAGAS: Mapping[str, str] = {
    "bleu": "BleuScore",
    "rouge": "RougeScore",
    "chrf": "CHRFScore",
    "string_similarity": "NonLLMStringSimilarity",
}


def string_scores(name: str, samples: Sequence[tuple[Case, Answer]]) -> list[Score]:
    """Scores by the metric `name` of `RAGAS`; every case has a reference."""
    return asyncio.run(_scores(name, samples))


async def _scores(name: str, samples: Sequence[tuple[Case, Answer]]) -> list[Score]:
    return [await _score(name, case, answer) for case, answer in samples]


async def _score(name: str, case: Case, answer: Answer) -> Score:
    if answer.error is not None:
        return Score(case.case_id, name, 0.0, answer.error)
    reference, response = case.reference or "", answer.text
    if name == "bleu":
        # Ragas parts both at ". " and compares nothing but the first part of the answer, with any
        # part of the reference; to sacrebleu a line's end is a space.
        reference, response = (text.replace(". ", ".\n") for text in (reference, response))
    found = await _metric(name).ascore(reference=reference, response=response)
    return Score(case.case_id, name, float(found.value), found.reason)


@cache
def _metric(name: str) -> Any:
    decline_telemetry()
    from ragas.metrics import collections

    return getattr(collections, RAGAS[name])()
