"""Evaluate a prompt: ask it every case through the gateway, with every seed, measure what comes.

Two evaluations of the same cases, seeds and metrics can be compared case by case: give
`evals.gate.judge` the `values` of both. A case that a version cannot be rendered with has no value
for it, and the reason.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

from evals.answers import Subject, answer_cases, request_body
from evals.golden_cases import GoldenCase, case_for
from evals.journal import Journal, key_of
from evals.judge import Judge, Samples
from evals.metrics import (
    LEAST_COVERAGE,
    Instruments,
    Metric,
    canonical,
    carries,
    metrics_named,
    scores_of,
    unspoken,
)
from evals.records import Answer, Case, Score
from evals.vectors import Embedder
from prompts.prompt import BadVariables, Prompt
from prompts.template import RenderFailed

PURPOSE = "evaluation"
Say = Callable[[str, int, int], None]  # what is done, how many of how many


def quiet(what: str, done: int, total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Client:
    """How evaluations ask.

    Attributes:
        url: the gateway, up to and with `/v1`.
        embeddings: alias of the embedding model; None: nothing is embedded.
        judge: who judges, where a metric wants it.
    """

    url: str
    api_key: str = field(repr=False)
    concurrency: int = 16
    timeout_seconds: float = 60
    embeddings: str | None = "all-MiniLM-L6-v2"
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many answers carry what a metric needs, and how many got a value."""

    carrying: int
    valued: int
    total: int

    @property
    def share(self) -> float:
        """The share that carries what is needed."""
        return self.carrying / self.total if self.total else 0.0

    @property
    def applicable(self) -> bool:
        """Whether it is enough to speak of."""
        return self.share >= LEAST_COVERAGE


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found of one prompt, or of a window of its traffic.

    Attributes:
        name, content_hash: the prompt; model: the alias that was asked.
        cases: in their order; of a window, one for each request.
        answers: of each case, one for each seed.
        scores: of each metric, of each case, one for each seed.
        lost: cases whose answer is not known, and why: not asked, or not kept in the log.
        seconds: how long measuring took; asking is not in it.
        spoken: whether its texts may be kept: of golden cases, not of live traffic.
    """

    name: str
    content_hash: str
    model: str
    cases: tuple[Case, ...]
    answers: tuple[tuple[Answer, ...], ...]
    scores: Mapping[str, tuple[tuple[Score, ...], ...]]
    coverage: Mapping[str, Coverage]
    lost: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    spoken: bool = True

    def values(self, metric: str) -> list[float | None]:
        """The metric's value of each case: the mean over its seeds, as far as they have one."""
        means: list[float | None] = []
        for scores in self.scores[canonical(metric)]:
            known = [score.value for score in scores if score.value is not None]
            means.append(sum(known) / len(known) if known else None)
        return means

    def known(self, metric: str) -> list[float]:
        """The values that there are."""
        return [value for value in self.values(metric) if value is not None]

    @property
    def targets(self) -> dict[str, int]:
        """Who answered, and how often: more than one means that the model moved meanwhile."""
        found: dict[str, int] = {}
        for answer in (one for answers in self.answers for one in answers):
            if answer.target is not None:
                found[answer.target] = found.get(answer.target, 0) + 1
        return found


def evaluate_prompt(
    prompt: Prompt,
    cases: Sequence[GoldenCase],
    client: Client,
    *,
    metrics: Sequence[str] | None = None,
    journal: Journal | None = None,
    say: Say = quiet,
) -> Evaluation:
    """Ask and measure.

    Args:
        metrics: names; by default those of the prompt's `evaluation`.
        journal: answers and judgements that were paid for are taken from it and kept in it.
        say: told how far it is.

    Raises: ValueError for an unknown metric.
    """
    names = prompt.evaluation.metrics if metrics is None else metrics
    wanted = metrics_named(names, client.judge)
    asked, lost = _rendered(prompt, cases)
    by_seed: list[dict[str, Answer]] = []
    for seed in range(prompt.evaluation.seeds):
        found = _ask(prompt, asked, client, seed, _Asking(journal, say, prompt.evaluation.seeds))
        by_seed.append({answer.case_id: answer for answer in found})
    known = {case.case_id: case for case in asked}
    all_cases = tuple(known.get(one.case_id) or _unasked(one) for one in cases)
    answers = tuple(
        tuple(
            seed.get(case.case_id) or Answer(case.case_id, "", 0.0, error=lost[case.case_id])
            for seed in by_seed
        )
        for case in all_cases
    )
    name, content = prompt.name, prompt.content_hash
    asked_all = Evaluation(name, content, prompt.model, all_cases, answers, {}, {}, lost)
    return measured(asked_all, wanted, client, journal=journal, say=say)


def measured(
    evaluation: Evaluation,
    metrics: Sequence[Metric],
    client: Client,
    *,
    journal: Journal | None = None,
    say: Say = quiet,
) -> Evaluation:
    """The evaluation with its answers measured."""
    started = perf_counter()
    scores: dict[str, tuple[tuple[Score, ...], ...]] = {}
    coverage: dict[str, Coverage] = {}
    pairs = list(zip(evaluation.cases, evaluation.answers, strict=True))
    for number, metric in enumerate(metrics):
        say(f"measuring {metric.name}", number, len(metrics))
        lost = evaluation.lost if metric.reads else {}
        samples = [
            (case, answer)
            for case, answers in pairs
            for answer in answers
            if case.case_id not in lost
        ]
        instruments = _instruments(client, journal, metric, samples, say)
        found = iter(scores_of(metric, samples, instruments))
        if not evaluation.spoken:
            found = map(unspoken, found)
        scores[metric.name] = tuple(
            tuple(
                Score(case.case_id, metric.name, None, lost[case.case_id])
                if case.case_id in lost
                else next(found)
                for _ in answers
            )
            for case, answers in pairs
        )
        every = [one for row in scores[metric.name] for one in row]
        valued = sum(one.value is not None for one in every)
        coverage[metric.name] = Coverage(carries(metric, samples), valued, len(every))
    say("measured", len(metrics), len(metrics))
    seconds = perf_counter() - started
    return replace(evaluation, scores=scores, coverage=coverage, seconds=seconds)


def _instruments(
    client: Client, journal: Journal | None, metric: Metric, samples: Samples, say: Say
) -> Instruments:
    embed = None
    if client.embeddings is not None:
        embed = Embedder(client.url, client.embeddings, client.api_key).embed
    judgements = iter(range(1, len(samples) + 1))

    def heard() -> None:
        say(f"judging {metric.name}", next(judgements, len(samples)), len(samples))

    return Instruments(embed, client.judge, journal, heard)


def _rendered(prompt: Prompt, cases: Sequence[GoldenCase]) -> tuple[list[Case], dict[str, str]]:
    """The cases as the prompt asks them, and why some cannot be asked."""
    asked, lost = [], {}
    for golden in cases:
        try:
            asked.append(case_for(prompt, golden))
        except (BadVariables, RenderFailed) as error:
            lost[golden.case_id] = f"this version cannot be rendered with it: {error}"
    return asked, lost


def _unasked(golden: GoldenCase) -> Case:
    return Case(golden.case_id, (), golden.expected, golden.tags)


@dataclass(frozen=True, slots=True)
class _Asking:
    journal: Journal | None
    say: Say
    seeds: int


def _ask(
    prompt: Prompt, cases: Sequence[Case], client: Client, seed: int, asking: _Asking
) -> list[Answer]:
    """Answers to all cases with one seed. Paid for is what is in the journal."""
    subject = Subject(
        url=client.url,
        model=prompt.model,
        parameters={
            **prompt.params,
            "seed": seed,
            "metadata": {"purpose": PURPOSE, "prompt": prompt.name},
        },
        api_key=client.api_key,
        concurrency=client.concurrency,
        timeout_seconds=client.timeout_seconds,
    )
    journal = asking.journal
    keys = {
        case.case_id: key_of(
            "answer", client.url, prompt.content_hash, request_body(subject, case).decode()
        )
        for case in cases
    }
    done: dict[str, Answer] = {}
    if journal is not None:
        for case_id, key in keys.items():
            kept: Mapping[str, Any] | None = journal.get(key)
            if kept is not None:
                done[case_id] = Answer(**{**kept, "case_id": case_id})

    def keep(answer: Answer) -> None:
        if journal is not None and answer.error is None:
            journal.put(keys[answer.case_id], asdict(answer))

    def progress(count: int, total: int) -> None:
        asking.say("asking", seed * total + count, asking.seeds * total)

    return asyncio.run(answer_cases(cases, subject, progress, done, keep=keep))
