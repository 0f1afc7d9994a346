"""Answers judged by a model, through the gateway itself: metered, logged and budgeted there.

A judge is pinned by what it says depends on: its model and the hash of its prompt (for Ragas'
metrics: of their prompts). What it was measured to be worth counts for that pin alone
(`evals.calibration`). A judge that answers nonsense, not in time, or not at all because its budget
is spent, leaves a failed score with the reason; the run goes on.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.answers import Subject, answer_cases
from evals.journal import Journal, key_of
from evals.json_text import read_json
from evals.records import Answer, Case, Score
from prompts.prompt import BadVariables, Prompt
from prompts.template import RenderFailed

JUDGE = "judge"
PIN_DIGITS = 12
RESPONSE = "response"  # the answer that is judged, in Ragas' words
EMPTY = "the answer is empty"
SILENT = "the judge gave no answer"
NONSENSE = "the judge answers nonsense"
UNRENDERED = "the judge's prompt cannot be rendered with it"

Samples = Sequence[tuple[Case, Answer]]
Keep = Callable[[int, Score], None]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that judges.

    Attributes:
        url: the gateway, up to and with `/v1`.
        model: the alias that judges.
        prompt: the prompt that it judges by under the metric `judge`; its `evaluation.fields` say
            which variable is the answer (`response`) and which are what else it needs.
        embeddings: alias of the model that embeds for `answer_relevancy`.
        max_tokens: of one of its answers to Ragas' prompts.
    """

    url: str
    model: str
    prompt: Prompt
    api_key: str = field(repr=False)
    embeddings: str = "all-MiniLM-L6-v2"
    concurrency: int = 4
    timeout_seconds: float = 60
    max_tokens: int = 1024

    def tags(self, metric: str) -> dict[str, str]:
        """What its requests are found by in the log."""
        return {"purpose": "judge", "metric": metric}


def judge_pin(judge: Judge) -> str:
    """What stands for the judge's model and prompt."""
    return key_of(judge.prompt.content_hash, judge.model)[:PIN_DIGITS]


def needs_of(prompt: Prompt) -> tuple[str, ...]:
    """What a judge's prompt needs beside the answer."""
    return tuple(sorted(prompt.evaluation.fields.keys() - {RESPONSE}))


def judge_scores(samples: Samples, judge: Judge, keep: Keep) -> None:
    """Ask the judge's prompt about each answer; its JSON has the number `score`, from 0 to 1."""
    places: dict[str, int] = {}
    cases = []
    for place, (case, answer) in enumerate(samples):
        try:
            messages = judge.prompt.render(_variables(judge.prompt, case, answer))
        except (BadVariables, RenderFailed) as error:
            keep(place, Score(case.case_id, JUDGE, None, str(error), UNRENDERED))
            continue
        places[str(place)] = place
        cases.append(Case(str(place), tuple(messages), None))
    subject = Subject(
        url=judge.url,
        model=judge.model,
        parameters={**judge.prompt.params, "metadata": judge.tags(JUDGE)},
        api_key=judge.api_key,
        concurrency=judge.concurrency,
        timeout_seconds=judge.timeout_seconds,
    )

    def heard(said: Answer) -> None:
        place = places[said.case_id]
        keep(place, _read(samples[place][0].case_id, said))

    asyncio.run(answer_cases(cases, subject, lambda done, total: None, {}, keep=heard))


def judged(
    metric: str,
    who: str,
    samples: Samples,
    journal: Journal | None,
    ask: Callable[[Samples, Keep], None],
) -> list[Score]:
    """A score for each answer: kept from an earlier attempt, plain, or what `ask` finds.

    Args:
        who: the judge's pin and address, which a kept score is of.
        ask: judges the samples that it is given, and calls back with each one's place and score.
    """
    found: dict[int, Score] = {}
    waiting: list[int] = []
    keys = [_key(metric, who, case, answer) for case, answer in samples]
    for place, (case, answer) in enumerate(samples):
        kept = None if journal is None else journal.get(keys[place])
        if answer.error is not None or not answer.text.strip():
            found[place] = Score(case.case_id, metric, 0.0, answer.error or EMPTY)
        elif kept is not None:
            found[place] = Score(case.case_id, metric, kept)
        else:
            waiting.append(place)

    def keep(index: int, score: Score) -> None:
        place = waiting[index]
        found[place] = score
        if journal is not None and score.value is not None:
            journal.put(keys[place], score.value)  # the reason may quote: the log's to keep

    if waiting:
        ask([samples[place] for place in waiting], keep)
    return [found[place] for place in range(len(samples))]


def _key(metric: str, who: str, case: Case, answer: Answer) -> str:
    known = [case.user_input, case.retrieved_contexts, case.reference]
    return key_of("judged", metric, who, known, answer.text)


def _variables(prompt: Prompt, case: Case, answer: Answer) -> Mapping[str, Any]:
    known = {
        RESPONSE: answer.text,
        "user_input": case.user_input,
        "retrieved_contexts": list(case.retrieved_contexts or ()),
        "reference": case.reference,
    }
    return {variable: known.get(name) for name, variable in prompt.evaluation.fields.items()}


def _read(case_id: str, said: Answer) -> Score:
    """What the judge said, as a score."""
    if said.error is not None:
        return Score(case_id, JUDGE, None, f"the judge: {said.error}", SILENT)
    try:
        value = read_json(said.text)["score"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"score {value!r} is no number from 0 to 1")
    except (ValueError, LookupError, TypeError) as error:
        shown = " ".join(said.text.split())[:100]
        reason = f"the judge answers nonsense ({error}): {shown!r}"
        return Score(case_id, JUDGE, None, reason, NONSENSE)
    return Score(case_id, JUDGE, float(value))
