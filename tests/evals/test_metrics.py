"""Metrics by name: what they need, what is said of what lacks it, crashes, embeddings."""

import numpy as np
import pytest

from evals.evaluation import Coverage
from evals.metrics import (
    METRICS,
    Instruments,
    Metric,
    canonical,
    carries,
    metric_named,
    metrics_named,
    scores_of,
)
from evals.records import Answer, Case, Score
from evals.vectors import VectorsUnavailable


def sample(case_id, text="an answer", **known):
    return Case(case_id, (), known.pop("expected", None), **known), Answer(case_id, text, 5.0)


def test_every_metric_of_the_documentation_is_there():
    names = [
        "exact", "contains", "valid_json", "schema", "latency", "cost", "refusal", "output_tokens",
        "embedding_similarity", "bleu", "rouge", "chrf", "string_similarity", "semantic_similarity",
        "groundedness", "faithfulness", "answer_relevancy", "context_precision", "context_recall",
        "factual_correctness", "judge",
    ]  # fmt: skip
    assert {metric_named(name).name for name in names} == {*METRICS, "judge"}
    assert canonical("exact") == "exact_match"
    assert [one.name for one in metrics_named(["exact", "exact_match", "cost"])] == [
        "exact_match", "cost"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no metric 'bluh' .there are: answer_relevancy, bleu"):
        metric_named("bluh")


def test_what_lacks_what_is_needed_has_no_value_and_a_reason():
    samples = [sample("a", expected="an answer"), sample("b")]
    for name, lacking in (("contains", "no expected"), ("schema", "schema"), ("rouge", "reference"),
                          ("groundedness", "contexts")):  # fmt: skip
        metric = metric_named(name)
        score = scores_of(metric, samples, Instruments())[1]
        assert score.value is None and lacking in str(score.reason)
        assert carries(metric, samples) == (name == "contains")


def test_a_metric_that_crashes_fails_where_it_crashes_only():
    def measure(samples, _instruments):
        for case, _ in samples:
            if case.case_id == "b":
                raise KeyError("gone")
        return [Score(case.case_id, "odd", 1.0) for case, _ in samples]

    metric = Metric("odd", (), measure)
    scores = scores_of(metric, [sample("a"), sample("b"), sample("c")], Instruments())
    assert [score.value for score in scores] == [1.0, None, 1.0]
    assert scores[1].reason == "KeyError: 'gone'"


def test_semantic_similarity_is_the_cosine_and_embeds_once():
    calls = []

    def embed(texts):
        calls.append(list(texts))
        return np.array(
            [{"same": (1, 0), "near": (0.6, 0.8), "far": (-1, 0)}[one] for one in texts]
        )

    samples = [
        sample("a", "same", reference="same"),
        sample("b", "near", reference="same"),
        sample("c", "far", reference="same"),
        (Case("d", (), None, reference="same"), Answer("d", "", 1.0, error="away")),
        sample("e", "", reference="same"),
    ]
    scores = scores_of(metric_named("semantic_similarity"), samples, Instruments(embed))
    assert [score.value for score in scores] == [1.0, 0.6, 0.0, 0.0, 0.0]
    assert len(calls) == 1 and scores[3].reason == "away"


def test_without_embeddings_or_a_judge_scores_fail_with_the_reason():
    def away(_texts):
        raise VectorsUnavailable("the server is away")

    known = {"reference": "r", "retrieved_contexts": ("c",), "user_input": "q"}
    for instruments, why in (
        (Instruments(), "nothing here embeds"),
        (Instruments(away), "is away"),
    ):
        for name in ("semantic_similarity", "groundedness"):
            (score,) = scores_of(metric_named(name), [sample("a", **known)], instruments)
            assert score.value is None and why in str(score.reason)
    (score,) = scores_of(metric_named("faithfulness"), [sample("a", **known)], Instruments())
    assert (score.value, score.reason) == (None, "no judge is set")


def test_coverage_below_a_fifth_is_not_applicable():
    assert Coverage(20, 20, 100).applicable and not Coverage(19, 19, 100).applicable
    assert not Coverage(0, 0, 0).applicable
