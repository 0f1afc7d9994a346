"""Ragas' metrics with a scripted judge: right values, and reasons where it is no good judge."""

from dataclasses import replace
from typing import Any

import pytest

from evals.journal import Journal
from evals.judge import Judge
from evals.metrics import Instruments, metric_named, pin_of, scores_of
from evals.ragas_judge import NOTHING, RAGAS
from evals.records import Answer, Case
from prompts.library import load_library
from tests.evals import ragas_script
from tests.evals.scripted_judge import MODEL, scripted_judge

TRUE, FALSE = "The worker polls one row.", "The moon is made of cheese."
CONTEXTS = (f"Some text. {TRUE} More text.", "Nothing of it.")


class Script:
    """What the judge answers; a test may change it."""

    def __init__(self) -> None:
        self.answer: Any = ragas_script.answer

    def __call__(self, body: dict[str, Any]) -> Any:
        return self.answer(body)


@pytest.fixture
def script(backstage):
    made = Script()
    with scripted_judge(backstage, made) as server:
        judge = Judge(server.url, MODEL, load_library()["judge"], "key", timeout_seconds=20)
        yield made, judge, server


def sample(text, case_id="a", **known):
    known = {"user_input": TRUE, "retrieved_contexts": CONTEXTS, "reference": TRUE} | known
    return Case(case_id, (), None, **known), Answer(case_id, text, 1.0)


def judged(name, judge, *samples, journal=None):
    return scores_of(metric_named(name), samples, Instruments(judge=judge, journal=journal))


def test_the_scripted_judge_makes_each_metric_what_it_should_be(script):
    _, judge, server = script
    half = f"{TRUE} {FALSE}"
    found = {name: [one.value for one in judged(name, judge, sample(TRUE), sample(half, "b"),
                                                sample(FALSE, "c"))] for name in RAGAS}  # fmt: skip
    assert found["faithfulness"] == [1.0, 0.5, 0.0]
    assert found["answer_relevancy"] == pytest.approx([1.0, 0.9, 0.7], abs=0.15)
    assert found["answer_relevancy"][0] > found["answer_relevancy"][1]
    assert found["context_precision"] == pytest.approx([1.0] * 3)  # of question and reference
    assert found["context_recall"] == [1.0] * 3
    assert found["factual_correctness"] == pytest.approx([1.0, 0.67, 0.0], abs=0.01)
    assert {body["model"] for body in server.bodies} == {MODEL}
    purposes = {body["metadata"]["metric"] for body in server.bodies}
    assert purposes == set(RAGAS)  # so the log knows what was paid for
    assert TRUE in server.embedded


def test_contexts_without_what_is_wanted_recall_nothing(script):
    (score,) = judged("context_recall", script[1], sample(TRUE, retrieved_contexts=("Other.",)))
    assert score.value == 0.0


def test_an_answer_that_says_nothing_is_none_of_the_judges_business(script):
    scores = judged("faithfulness", script[1], sample(""), sample(" ", "b"))
    assert [score.value for score in scores] == [0.0, 0.0] and not script[2].bodies


def test_a_judge_that_finds_nothing_leaves_no_value(script):
    script[0].answer = lambda body: '{"statements": []}'
    (score,) = judged("faithfulness", script[1], sample("Hm."))
    assert score.value is None and score.reason == NOTHING


@pytest.mark.parametrize("name", RAGAS)
def test_nonsense_is_asked_about_once_more_and_then_said(script, name):
    script[0].answer = lambda body: "I think that it is very good!"
    (score,) = judged(name, script[1], sample(TRUE))
    assert score.value is None and str(score.reason).startswith("the judge: ")
    assert "JSON" in str(score.reason) and len(str(score.reason)) < 400
    assert len(script[2].bodies) <= 4


@pytest.mark.parametrize(
    ("status", "said"), [(402, "budget exceeded"), (429, "too many requests"), (401, "no such key")]
)
def test_what_the_gateway_refuses_is_said(script, status, said):
    script[0].answer = lambda body: (status, {"error": {"message": said, "code": "x"}})
    (score,) = judged("faithfulness", script[1], sample(TRUE))
    assert score.value is None and str(status) in str(score.reason) and said in str(score.reason)


def test_a_judge_that_is_away_fails_its_scores_and_no_others(script):
    gone = replace(script[1], url="http://127.0.0.1:9/v1", timeout_seconds=1)
    (score,) = judged("faithfulness", gone, sample(TRUE))
    assert score.value is None and "the judge: " in str(score.reason)
    flaky = iter([False, True, True, True, True])

    def answer(body):
        return ragas_script.answer(body) if next(flaky) else (400, {"error": {"message": "no"}})

    script[0].answer = answer
    one_by_one = replace(script[1], concurrency=1)
    scores = judged("faithfulness", one_by_one, sample(TRUE), sample(TRUE, "b"))
    assert [score.value for score in scores] == [None, 1.0]


def test_a_judgement_that_was_paid_for_is_not_paid_again(script, tmp_path):
    with Journal(tmp_path / "a.journal") as journal:
        first = judged("faithfulness", script[1], sample(TRUE), journal=journal)
    paid = len(script[2].bodies)
    with Journal(tmp_path / "a.journal") as journal:
        both = judged("faithfulness", script[1], sample(TRUE), sample(FALSE, "b"), journal=journal)
        assert both[0] == first[0] and len(script[2].bodies) == 2 * paid
        other = replace(script[1], model="another")  # another judge
        judged("faithfulness", other, sample(TRUE), journal=journal)
    assert len(script[2].bodies) == 3 * paid


def test_the_pin_is_of_model_and_prompts(script):
    judge = script[1]
    pins = {pin_of(name, judge) for name in (*RAGAS, "judge")}
    assert len(pins) == len(RAGAS) + 1
    assert pin_of("faithfulness", judge) == pin_of("faithfulness", replace(judge, url="x"))
    assert pin_of("faithfulness", judge) != pin_of("faithfulness", replace(judge, model="x"))
