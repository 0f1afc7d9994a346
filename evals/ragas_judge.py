"""Ragas' metrics that need a judge, asked through the gateway by an OpenAI client."""

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evals.journal import key_of
from evals.judge import PIN_DIGITS, RESPONSE, Judge, Keep, Samples
from evals.records import Answer, Case, Score
from evals.scorers import CRASHES
from evals.vectors import Embedder
from gateway.settings import decline_telemetry

REASON_CHARACTERS = 300
NOTHING = "the judge found nothing to judge in it"


@dataclass(frozen=True, slots=True)
class RagasMetric:
    """A metric of `ragas.metrics.collections`.

    Attributes:
        kind: its class there.
        asked: what it is called with.
        embeds: whether it embeds too.
    """

    kind: str
    asked: tuple[str, ...]
    embeds: bool = False


RAGAS: Mapping[str, RagasMetric] = {
    "faithfulness": RagasMetric("Faithfulness", ("user_input", RESPONSE, "retrieved_contexts")),
    "answer_relevancy": RagasMetric("AnswerRelevancy", ("user_input", RESPONSE), embeds=True),
    "context_precision": RagasMetric(
        "ContextPrecision", ("user_input", "reference", "retrieved_contexts")
    ),
    "context_recall": RagasMetric(
        "ContextRecall", ("user_input", "reference", "retrieved_contexts")
    ),
    "factual_correctness": RagasMetric("FactualCorrectness", (RESPONSE, "reference")),
}


def ragas_pin(name: str, judge: Judge) -> str:
    """What stands for the metric's prompts, the judge's model and its parameters."""
    return asyncio.run(_pin(name, judge))


def ragas_scores(name: str, samples: Samples, judge: Judge, keep: Keep) -> None:
    """Judge each sample by the metric `name` of `RAGAS`."""
    asyncio.run(_scores(name, samples, judge, keep))


async def _scores(name: str, samples: Samples, judge: Judge, keep: Keep) -> None:
    limit = asyncio.Semaphore(judge.concurrency)
    async with _client(judge) as client:
        metric = _metric(name, judge, client)

        async def one(place: int, case: Case, answer: Answer) -> None:
            async with limit:
                keep(place, await _score(name, metric, case, answer))

        async with asyncio.TaskGroup() as group:
            for place, (case, answer) in enumerate(samples):
                group.create_task(one(place, case, answer))


async def _score(name: str, metric: Any, case: Case, answer: Answer) -> Score:
    from instructor.core import InstructorError
    from openai import OpenAIError

    known = {
        "user_input": case.user_input,
        RESPONSE: answer.text,
        "retrieved_contexts": list(case.retrieved_contexts or ()),
        "reference": case.reference,
    }
    try:
        found = await metric.ascore(**{one: known[one] for one in RAGAS[name].asked})
    except (InstructorError, OpenAIError, *CRASHES) as error:
        quiet = f"the judge: {type(error).__name__}"
        return Score(case.case_id, name, None, f"the judge: {_shown(error)}", quiet)
    if found.value is None or math.isnan(found.value):
        return Score(case.case_id, name, None, NOTHING, NOTHING)
    return Score(case.case_id, name, min(float(found.value), 1.0), found.reason)


def _client(judge: Judge) -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        base_url=judge.url,
        api_key=judge.api_key,
        timeout=judge.timeout_seconds,
        max_retries=1,
    )


def _metric(name: str, judge: Judge, client: Any) -> Any:
    decline_telemetry()
    logging.getLogger("instructor").setLevel(logging.CRITICAL)  # scores have the reasons
    from ragas.llms.base import llm_factory
    from ragas.metrics import collections

    llm = llm_factory(
        judge.model,
        client=client,
        metadata=judge.tags(name),
        temperature=0.0,
        max_tokens=judge.max_tokens,
        max_retries=1,  # of Instructor's: nonsense is asked about once more, not three times
    )
    more = {"embeddings": _embeddings(judge)} if RAGAS[name].embeds else {}
    return getattr(collections, RAGAS[name].kind)(llm=llm, **more)


def _embeddings(judge: Judge) -> Any:
    from ragas.embeddings.base import BaseRagasEmbedding

    embedder = Embedder(judge.url, judge.embeddings, judge.api_key)

    class ThroughTheGateway(BaseRagasEmbedding):
        """The gateway's cached embeddings."""

        def embed_text(self, text: str, **_more: Any) -> list[float]:
            """One text's vector."""
            return [float(one) for one in embedder.embed([text])[0]]

        async def aembed_text(self, text: str, **more: Any) -> list[float]:
            """The same, beside other work."""
            return await asyncio.to_thread(self.embed_text, text, **more)

    return ThroughTheGateway()


async def _pin(name: str, judge: Judge) -> str:
    async with _client(judge) as client:
        metric = _metric(name, judge, client)
    from ragas import __version__
    from ragas.prompt.metrics.base_prompt import BasePrompt

    prompts = {
        attribute: [
            value.instruction,
            [[one.model_dump(), other.model_dump()] for one, other in value.examples],
        ]
        for attribute, value in vars(metric).items()
        if isinstance(value, BasePrompt)
    }
    return key_of(__version__, name, prompts, judge.model, judge.max_tokens)[:PIN_DIGITS]


def _shown(error: BaseException) -> str:
    """The error at the bottom, short: Instructor wraps what happened in pages of XML."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    short = text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"
    return f"{type(error).__name__}: {short}"
