"""Every metric by name: what it needs beside the answer, and how many answers at once get it.

A metric is computed only where the case carries what it needs; `coverage` says how often that is.
Below `LEAST_COVERAGE` a metric is not applicable: what is left would speak for nobody.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from evals.groundedness import Embed, groundedness
from evals.journal import Journal
from evals.judge import (
    EMPTY,
    JUDGE,
    RESPONSE,
    Judge,
    Keep,
    Samples,
    judge_pin,
    judge_scores,
    judged,
    needs_of,
)
from evals.ragas_judge import RAGAS as JUDGED
from evals.ragas_judge import ragas_pin, ragas_scores
from evals.records import Score
from evals.scorers import CRASHES, SCORERS, score_one
from evals.string_metrics import RAGAS as STRINGS
from evals.string_metrics import string_scores
from evals.vectors import VectorsUnavailable

LEAST_COVERAGE = 0.2
EMBEDDED = frozenset(("semantic_similarity", "groundedness"))
_log = logging.getLogger(__name__)
ALIASES: Mapping[str, str] = {
    "exact": "exact_match", "bleu_score": "bleu", "rouge_score": "rouge", "chrf_score": "chrf",
    "non_llm_string_similarity": "string_similarity", "embedding_similarity": "semantic_similarity",
}  # fmt: skip
LACKING: Mapping[str, str] = {
    "expected": "the case says no expected answer",
    "reference": "there is no reference",
    "retrieved_contexts": "there are no contexts",
    "user_input": "there is no question",
    "schema": "neither the case nor the prompt has a schema",
}
NO_JUDGE = "no judge is set"
PLAIN = frozenset((*LACKING.values(), EMPTY, NO_JUDGE))  # reasons that quote nothing
UNTOLD = "it could not be measured; the log has what was answered"


@dataclass(frozen=True, slots=True)
class Instruments:
    """What metrics measure with; a metric whose instrument is missing has failed scores."""

    embed: Embed | None = None
    judge: Judge | None = None
    journal: Journal | None = None
    heard: Callable[[], None] = lambda: None  # called after each judgement


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        needs: fields of the case that it is nothing without.
        measure: a score for each sample, in order; samples carry what it needs.
        judged: whether a model judges.
        reads: whether it reads the answer's text, or only what was booked of it.
    """

    name: str
    needs: tuple[str, ...]
    measure: Callable[[Samples, Instruments], list[Score]]
    judged: bool = False
    reads: bool = True


def canonical(name: str) -> str:
    """The one name of a metric that has several."""
    return ALIASES.get(name, name)


def metric_named(name: str, judge: Judge | None = None) -> Metric:
    """The metric of that name. Raises ValueError that names those there are."""
    name = canonical(name)
    if name == JUDGE:
        needs = () if judge is None else needs_of(judge.prompt)
        return Metric(JUDGE, needs, partial(_judged, JUDGE), judged=True)
    if name not in METRICS:
        raise ValueError(f"no metric {name!r} (there are: {', '.join(sorted((*METRICS, JUDGE)))})")
    return METRICS[name]


def require_metrics(names: Iterable[str], where: str) -> None:
    """Raises ValueError, with where they are named, for a metric that there is not."""
    for name in names:
        try:
            metric_named(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def by_instrument(names: Iterable[str]) -> frozenset[str]:
    """Those of the metrics whose value may be missing for the fault of a judge or an embedder."""
    return frozenset(name for name in names if name in EMBEDDED or metric_named(name).judged)


def unspoken(score: Score) -> Score:
    """The score with a reason that quotes nothing: texts of live traffic are the log's to keep, and
    to erase. A fixed form, not a filter: what has none loses its reason."""
    kept = score.quiet
    if kept is None and score.reason in PLAIN:
        kept = score.reason
    if kept is None and score.value is None:
        kept = UNTOLD
    return replace(score, reason=kept)


def scores_of(metric: Metric, samples: Samples, instruments: Instruments) -> list[Score]:
    """A score for each sample, in order; one that lacks what is needed has none, and why."""
    found: dict[int, Score] = {}
    carrying: list[int] = []
    for place, (case, _) in enumerate(samples):
        lacking = [name for name in metric.needs if getattr(case, name) is None]
        if lacking:
            found[place] = Score(case.case_id, metric.name, None, LACKING[lacking[0]])
        else:
            carrying.append(place)
    measured = _measured(metric, [samples[place] for place in carrying], instruments)
    found |= dict(zip(carrying, measured, strict=True))
    return [found[place] for place in range(len(samples))]


def _measured(metric: Metric, samples: Samples, instruments: Instruments) -> list[Score]:
    """All at once; where that crashes, one by one, so that only what crashes has no value."""
    try:
        return metric.measure(samples, instruments) if samples else []
    except CRASHES as error:
        if len(samples) > 1:
            return [
                score for sample in samples for score in _measured(metric, [sample], instruments)
            ]
        _log.exception("metric %s failed on case %s", metric.name, samples[0][0].case_id)
        reason = f"{type(error).__name__}: {error}"
        quiet = f"it crashed: {type(error).__name__}"
        return [Score(samples[0][0].case_id, metric.name, None, reason, quiet)]


def carries(metric: Metric, samples: Samples) -> int:
    """How many samples carry what the metric needs."""
    return sum(all(getattr(case, name) is not None for name in metric.needs) for case, _ in samples)


def pin_of(metric: str, judge: Judge) -> str:
    """What stands for the judge of a metric: its model and the prompts of that metric."""
    return judge_pin(judge) if metric == JUDGE else ragas_pin(metric, judge)


def _scored(name: str, samples: Samples, _instruments: Instruments) -> list[Score]:
    return [score_one(SCORERS[name], case, answer) for case, answer in samples]


def _strings(name: str, samples: Samples, _instruments: Instruments) -> list[Score]:
    return string_scores(name, samples)


def _embedding(
    name: str, measure: Callable[[Samples, Embed], list[Score]]
) -> Callable[[Samples, Instruments], list[Score]]:
    def measured(samples: Samples, instruments: Instruments) -> list[Score]:
        try:
            if instruments.embed is None:
                raise VectorsUnavailable("nothing here embeds texts")
            return measure(samples, instruments.embed)
        except VectorsUnavailable as error:
            quiet = "texts cannot be embedded"
            return [Score(case.case_id, name, None, str(error), quiet) for case, _ in samples]

    return measured


def _similar(samples: Samples, embed: Embed) -> list[Score]:
    """Cosine of answer and reference, at least 0."""
    name = "semantic_similarity"
    texts = [
        text for case, answer in samples for text in (answer.text, case.reference or "") if text
    ]
    vectors = dict(zip(texts, embed(texts), strict=True)) if texts else {}
    scores = []
    for case, answer in samples:
        if answer.error is not None or not answer.text:
            reason = answer.error or EMPTY
            scores.append(Score(case.case_id, name, 0.0, reason))
        else:
            near = float(vectors[answer.text] @ vectors[case.reference or ""])
            scores.append(Score(case.case_id, name, max(min(near, 1.0), 0.0)))
    return scores


def _judged(name: str, samples: Samples, instruments: Instruments) -> list[Score]:
    judge = instruments.judge
    if judge is None:
        return [Score(case.case_id, name, None, NO_JUDGE) for case, _ in samples]

    def ask(waiting: Samples, keep: Keep) -> None:
        def heard(place: int, score: Score) -> None:
            keep(place, score)
            instruments.heard()

        if name == JUDGE:
            judge_scores(waiting, judge, heard)
        else:
            ragas_scores(name, waiting, judge, heard)

    who = f"{pin_of(name, judge)} at {judge.url}"
    return judged(name, who, samples, instruments.journal, ask)


NEEDS: Mapping[str, tuple[str, ...]] = {
    "exact_match": ("expected",), "contains": ("expected",),
    "schema": ("schema",),
}  # fmt: skip
BOOKED = frozenset(("latency", "cost", "output_tokens"))
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        **{
            name: Metric(
                name, NEEDS.get(name, ()), partial(_scored, name), reads=name not in BOOKED
            )
            for name in SCORERS
        },
        **{name: Metric(name, ("reference",), partial(_strings, name)) for name in STRINGS},
        "semantic_similarity": Metric(
            "semantic_similarity", ("reference",), _embedding("semantic_similarity", _similar)
        ),
        "groundedness": Metric(
            "groundedness", ("retrieved_contexts",), _embedding("groundedness", groundedness)
        ),
        **{
            name: Metric(
                name,
                tuple(one for one in JUDGED[name].asked if one != RESPONSE),
                partial(_judged, name),
                judged=True,
            )
            for name in JUDGED
        },
    }
)


def metrics_named(names: Sequence[str], judge: Judge | None = None) -> list[Metric]:
    """The metrics of these names, each once. Raises ValueError."""
    found = {one.name: one for one in (metric_named(name, judge) for name in names)}
    return list(found.values())
