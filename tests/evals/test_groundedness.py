"""Groundedness with the real MiniLM, and its figure on answers that it was not fitted on."""

import numpy as np
import pytest

from evals.groundedness import WEIGHTS, claims_of, groundedness, load_weights
from evals.groundedness_cases import CALIBRATION, HELD_OUT, build, load_source
from evals.groundedness_fit import fit, load_labelled, measure, packaged_embedder
from evals.records import Answer, Case

AREA_GOAL = 0.85
PASSAGE = (
    "Each worker holds all keys in memory and polls one row of the state database every 250 ms. "
    "While the database is away the workers go on serving the keys that they know, for at most "
    "15 minutes; an unknown key is answered with 503 then, not 401."
)
OTHER = "An adapter gets traffic only after every replica of the engine lists it."


@pytest.fixture(scope="module")
def embed(tmp_path_factory):
    return packaged_embedder(tmp_path_factory.mktemp("models"))


def value(embed, answer, contexts=(OTHER, PASSAGE), **fields):
    case = Case("one", (), None, retrieved_contexts=contexts)
    (score,) = groundedness([(case, Answer("one", answer, 1.0, **fields))], embed)
    return score


def never_asked(texts):
    raise AssertionError(f"embedded {texts}")


@pytest.mark.parametrize(
    ("true", "false"),
    [
        (
            "Workers check one row of the state database every 250 ms.",
            "Workers check one row of the state database every 900 ms.",
        ),
        (
            "While the database is away the workers go on serving the keys that they know.",
            "While the database is away the workers do not go on serving the keys that they know.",
        ),
        (
            "Known keys are served for at most 15 minutes while the database is away.",
            "Known keys are served for at least 15 minutes while the database is away.",
        ),
        (
            "An unknown key is answered with 503 then, not 401.",
            "A known key is answered with 503 then, not 401.",
        ),
        (
            "Each worker holds all keys in memory.",
            "PostgreSQL holds all keys in memory.",
        ),
        (
            "An adapter gets traffic once every replica of the engine lists it.",
            "The gateway sends an email to the owner before a key expires.",
        ),
    ],
)
def test_what_the_passages_say_is_grounded_and_what_they_do_not_say_is_less_so(embed, true, false):
    assert value(embed, true).value > value(embed, false).value + 0.15


def test_the_reason_names_what_was_not_seen(embed):
    invented = "The gateway sends an email to the owner before a key expires."
    assert value(embed, f"An unknown key is answered with 503. {invented}").reason == (
        f"not seen in the contexts: {invented!r}"
    )


def test_the_value_is_the_share_of_sentences_that_is_expected(embed):
    good = "An unknown key is answered with 503 then, not 401."
    bad = "The gateway sends an email to the owner before a key expires."
    both, one, other = (value(embed, text).value for text in (f"{good} {bad}", good, bad))
    assert both == pytest.approx((one + other) / 2)


def test_what_needs_no_embedding():
    assert value(never_asked, "").value == 1.0
    declined = value(never_asked, "I'm sorry, but I can't answer that.")
    assert (declined.value, declined.reason) == (1.0, "it claims nothing")
    bare = value(never_asked, "Keys expire.", contexts=())
    assert (bare.value, bare.reason) == (0.0, "no context supports anything")
    assert value(never_asked, "", error="engine answered 500").value == 0.0


def test_all_texts_are_embedded_in_one_call_and_once():
    calls = []

    def embed(texts):
        calls.append(list(texts))
        return np.eye(len(texts))

    case = Case("one", (), None, retrieved_contexts=(PASSAGE,))
    groundedness([(case, Answer("one", "Workers hold keys.", 1.0))] * 3, embed)
    assert len(calls) == 1
    assert len(calls[0]) == len(set(calls[0]))


def test_leads_and_refusals_are_no_claims():
    text = "According to the documentation: keys expire. I don't know more."
    assert claims_of(text) == ["keys expire."]


def test_weights_for_other_features_are_refused(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text('{"intercept": 0, "weights": {"closeness": 1}}')
    with pytest.raises(ValueError, match="other features"):
        load_weights(path)


def test_the_labelled_answers_are_what_the_rules_make_of_the_source():
    made = [(row["case_id"], row["answer"], row["grounded"]) for row in build(load_source())]
    assert made == [(one.case_id, one.answer, one.grounded) for one in load_labelled()]


def test_the_labelled_answers_are_many_of_both_kinds_and_no_passage_is_in_both_halves():
    labelled = load_labelled()
    halves = {
        half: [one for one in labelled if one.half == half] for half in (CALIBRATION, HELD_OUT)
    }
    for half in halves.values():
        assert min(sum(one.grounded for one in half), sum(not one.grounded for one in half)) >= 80
    assert not {one.group for one in halves[CALIBRATION]} & {one.group for one in halves[HELD_OUT]}
    for one in labelled:
        assert one.grounded == (not one.unsupported)
        for wrong in one.unsupported:
            assert not any(wrong in context for context in one.contexts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_grounded_and_ungrounded_answers_are_told_apart(embed):
    """On 190 answers about passages that the weights were not fitted on."""
    held_out = [one for one in load_labelled() if one.half == HELD_OUT]
    figures = measure(held_out, load_weights(), embed)
    print(figures)
    assert figures.area.value >= AREA_GOAL
    assert figures.area.low >= 0.8
    assert min(figures.by_kind.values()) >= 0.75


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_weights_in_use_are_those_of_the_calibration_half(embed):
    fitted = fit([one for one in load_labelled() if one.half == CALIBRATION], embed)
    used = load_weights(WEIGHTS)
    assert fitted.weights == pytest.approx(used.weights, abs=0.02)
    assert fitted.intercept == pytest.approx(used.intercept, abs=0.02)
