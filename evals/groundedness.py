"""Groundedness: the share of an answer's sentences that its contexts support, without a judge.

Each sentence gets a probability that the contexts support it (`evals.support`, weighed by weights
that were fitted on labelled answers); the answer's value is their mean, the share that is expected.
A sentence that declines to answer claims nothing and does not count; an answer that claims nothing
has nothing ungrounded in it. Without contexts nothing is supported.

`python -m evals.groundedness_fit` fits the weights and measures them on answers that they were not
fitted on; docs/evaluation.md has the figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from evals.records import Answer, Case, Score
from evals.refusals import is_refusal
from evals.sentences import sentences
from evals.support import FEATURES, Evidence, Stretch, candidates, claim_in, evidence_of, features

NAME = "groundedness"
WEIGHTS = Path(__file__).parent / "groundedness_weights.json"
SAYS_NOTHING, NO_CONTEXT = "it claims nothing", "no context supports anything"
SUPPORTED = 0.5  # a sentence below it is named in the reason
SHOWN_SENTENCES, SHOWN_CHARACTERS = 3, 120

Embed = Callable[[Sequence[str]], Any]  # texts to a matrix, one row of length one a text


@dataclass(frozen=True, slots=True)
class Weights:
    """A logistic model over `FEATURES`."""

    intercept: float
    weights: tuple[float, ...]

    def probability(self, values: Sequence[float]) -> float:
        """How likely it is that the contexts support the sentence with these features."""
        pairs = zip(self.weights, values, strict=True)
        total = self.intercept + sum(weight * value for weight, value in pairs)
        return 1 / (1 + math.exp(-total))


def load_weights(path: Path = WEIGHTS) -> Weights:
    """The weights in use. Raises ValueError where they are for other features."""
    content = orjson.loads(path.read_bytes())
    if tuple(content["weights"]) != FEATURES:
        raise ValueError(
            f"{path}: weights for other features; run: python -m evals.groundedness_fit"
        )
    return Weights(content["intercept"], tuple(content["weights"].values()))


def claims_of(text: str) -> list[str]:
    """What an answer claims, sentence by sentence."""
    found = (claim_in(sentence) for sentence in sentences(text))
    return [claim for claim in found if claim.strip() and not is_refusal(claim)]


def groundedness(
    samples: Sequence[tuple[Case, Answer]], embed: Embed, weights: Weights | None = None
) -> list[Score]:
    """A score for each answer; its case has contexts, if only none.

    Args:
        embed: asked once, for all texts together.
    """
    weights = weights or load_weights()
    compared = [
        compare(claims_of(answer.text), case.retrieved_contexts or ()) for case, answer in samples
    ]
    vectors = embedded(compared, embed)
    return [
        _score(case, answer, claims, [weights.probability(one.features(vectors)) for one in claims])
        for (case, answer), claims in zip(samples, compared, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A claim, and the places of the stretches of the evidence that it is compared with."""

    claim: Stretch
    evidence: Evidence
    places: Sequence[int]

    @property
    def texts(self) -> list[str]:
        """What has to be embedded."""
        return [self.claim.text, *(self.evidence.stretches[one][0].text for one in self.places)]

    def features(self, vectors: Mapping[str, Any]) -> list[float]:
        """`FEATURES`, given the vectors of its texts."""
        said, *others = (vectors[text] for text in self.texts)
        closeness = [float(said @ other) for other in others]
        return features(self.claim, self.evidence, self.places, closeness)


def compare(claims: Sequence[str], contexts: tuple[str, ...]) -> list[Comparison]:
    """Lay claims beside contexts. Without contexts that say anything there is nothing to do."""
    evidence = evidence_of(contexts)
    said = [Stretch(claim) for claim in claims] if evidence.stretches else []
    return [Comparison(one, evidence, candidates(one, evidence)) for one in said]


def embedded(compared: Sequence[Sequence[Comparison]], embed: Embed) -> dict[str, Any]:
    """The vectors of all texts, each computed once."""
    texts = list(dict.fromkeys(text for group in compared for one in group for text in one.texts))
    return dict(zip(texts, embed(texts), strict=True)) if texts else {}


def _score(
    case: Case, answer: Answer, claims: Sequence[Comparison], found: Sequence[float]
) -> Score:
    if answer.error is not None:
        return Score(case.case_id, NAME, 0.0, answer.error)
    if not claims_of(answer.text):
        return Score(case.case_id, NAME, 1.0, SAYS_NOTHING, SAYS_NOTHING)
    if not claims:
        return Score(case.case_id, NAME, 0.0, NO_CONTEXT, NO_CONTEXT)
    doubted = [one.claim.text for one, p in zip(claims, found, strict=True) if p < SUPPORTED]
    quiet = f"{len(doubted)} of {len(claims)} sentences are not seen in the contexts"
    share = math.fsum(found) / len(found)
    return Score(case.case_id, NAME, share, _doubts(doubted), quiet if doubted else None)


def _doubts(claims: Sequence[str]) -> str | None:
    if not claims:
        return None
    more = ", …" if len(claims) > SHOWN_SENTENCES else ""
    shown = [
        claim if len(claim) <= SHOWN_CHARACTERS else claim[: SHOWN_CHARACTERS - 1] + "…"
        for claim in claims[:SHOWN_SENTENCES]
    ]
    return f"not seen in the contexts: {', '.join(map(repr, shown))}{more}"
