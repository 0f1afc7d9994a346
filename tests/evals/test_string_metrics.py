"""Ragas' string metrics: what comes out is what the libraries under them say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from sacrebleu import corpus_bleu, sentence_chrf

from evals.metrics import metric_named, scores_of
from evals.records import Answer, Case
from evals.string_metrics import RAGAS, string_scores

SAID = ("the", "cat", "sat", "on", "a", "mat", "and", "ran.", "Then", "it.", "slept")
WORDS = st.lists(st.sampled_from(SAID), min_size=1, max_size=12).map(" ".join)


def value(name, reference, text):
    (score,) = string_scores(name, [(Case("a", (), None, reference=reference),
                                     Answer("a", text, 1.0))])  # fmt: skip
    return score.value


@given(WORDS, WORDS)
@settings(max_examples=25, deadline=None)
def test_values_are_the_libraries(reference, text):
    spaced, said = reference.replace(". ", ".\n"), text.replace(". ", ".\n")
    bleu = corpus_bleu([said], [[spaced]]).score / 100
    assert value("bleu", reference, text) == pytest.approx(bleu, abs=1e-6)
    assert value("chrf", reference, text) == pytest.approx(
        sentence_chrf(text, [reference]).score / 100, abs=1e-6
    )
    rouge = RougeScorer(["rougeL"], use_stemmer=True).score(reference, text)["rougeL"].fmeasure
    assert value("rouge", reference, text) == pytest.approx(rouge)
    near = Levenshtein.normalized_similarity(reference, text)
    assert value("string_similarity", reference, text) == pytest.approx(near)


@pytest.mark.parametrize("name", RAGAS)
def test_the_same_text_is_right_and_another_is_not(name):
    text = "It is ready. The worker polls one row of the database every second."
    assert value(name, text, text) == pytest.approx(1.0)
    assert value(name, text, "Bananas grow far away, said nobody at all today.") < 0.4


@pytest.mark.parametrize("name", RAGAS)
def test_no_answer_is_wrong_and_no_reference_is_no_value(name):
    samples = [
        (Case("a", (), None, reference="x"), Answer("a", "", 1.0, error="away")),
        (Case("b", (), None, reference="some words"), Answer("b", "", 1.0)),
        (Case("c", (), None), Answer("c", "x", 1.0)),
    ]
    from evals.metrics import Instruments

    first, second, third = scores_of(metric_named(name), samples, Instruments())
    assert (first.value, first.reason) == (0.0, "away")
    assert second.value == 0.0
    assert (third.value, third.reason) == (None, "there is no reference")
