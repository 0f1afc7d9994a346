"""A prompt as a judge, with a scripted model behind it: what it says, and what is said of it."""

from dataclasses import replace

import pytest

from evals.journal import Journal
from evals.judge import EMPTY, Judge, judge_pin, needs_of
from evals.metrics import Instruments, metric_named, scores_of
from evals.records import Answer, Case
from prompts.library import load_library
from tests.evals.scripted_judge import MODEL, scripted_judge


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("evals.answers.PAUSE_SECONDS", 0.01)


@pytest.fixture
def asking(backstage):
    """A judge that says what stands in `said`."""
    said = {"answer": '{"score": 1}'}
    with scripted_judge(backstage, lambda body: said["answer"]) as server:
        yield said, Judge(server.url, MODEL, load_library()["judge"], "key"), server


def sample(case_id="a", text="It is so.", contexts=("It is so.",), error=None):
    return Case(case_id, (), None, retrieved_contexts=contexts), Answer(
        case_id, text, 1, error=error
    )


def scores(judge, *samples, journal=None):
    metric = metric_named("judge", judge)
    return scores_of(metric, samples, Instruments(judge=judge, journal=journal))


def test_it_is_asked_by_its_prompt_and_its_score_is_the_value(asking):
    said, judge, server = asking
    said["answer"] = '{"score": 0.25, "why": "half"}'
    (score,) = scores(judge, sample())
    assert score.value == 0.25
    (body,) = server.bodies
    assert "Answer: It is so." in body["messages"][-1]["content"] and body["model"] == MODEL
    assert body["metadata"] == {"purpose": "judge", "metric": "judge"}
    assert body["max_tokens"] == 24  # the prompt's own parameters


@pytest.mark.parametrize(
    "nonsense",
    ["", "good", "[1]", "{}", '{"score": 2}', '{"score": -0.1}', '{"score": "1"}',
     '{"score": true}', '{"score": null}', '{"score": NaN}'],
)  # fmt: skip
def test_nonsense_is_a_failed_score_that_shows_it(asking, nonsense):
    asking[0]["answer"] = nonsense
    (score,) = scores(asking[1], sample())
    assert score.value is None and "the judge answers nonsense" in str(score.reason)
    assert repr(nonsense) in str(score.reason)


@pytest.mark.parametrize(("status", "tries"), [(402, 1), (429, 3), (500, 3)])
def test_a_judge_over_budget_or_broken_is_a_failed_score(asking, status, tries):
    asking[0]["answer"] = (status, {"error": {"message": "the budget of the key is spent"}})
    (score,) = scores(asking[1], sample())
    assert score.value is None
    assert f"answered {status}: the budget of the key is spent" in str(score.reason)
    assert len(asking[2].bodies) == tries


def test_a_judge_that_takes_too_long_is_a_failed_score(backstage):
    import time

    def slow(body):
        time.sleep(0.4)
        return '{"score": 1}'

    with scripted_judge(backstage, slow) as server:
        judge = Judge(server.url, MODEL, load_library()["judge"], "key", timeout_seconds=0.1)
        (score,) = scores(judge, sample())
    assert score.value is None and "no answer" in str(score.reason) and "0.1 s" in str(score.reason)


def test_answers_that_failed_or_are_empty_are_not_asked_about(asking):
    found = scores(
        asking[1], sample(text=""), sample("b", error="away"), sample("c", contexts=None)
    )
    assert [(one.value, one.reason) for one in found] == [
        (0.0, EMPTY), (0.0, "away"), (None, "there are no contexts")
    ]  # fmt: skip
    assert not asking[2].bodies


def test_what_was_judged_is_not_paid_again_and_what_failed_is(asking, tmp_path):
    said, judge, server = asking
    said["answer"] = "hm"
    with Journal(tmp_path / "j") as journal:
        assert scores(judge, sample(), journal=journal)[0].value is None
        said["answer"] = '{"score": 1}'
        assert scores(judge, sample(), journal=journal)[0].value == 1.0
        said["answer"] = '{"score": 0}'
        assert scores(judge, sample(), journal=journal)[0].value == 1.0
        assert len(server.bodies) == 2
        # Other contexts, another answer, another model: another judgement.
        assert scores(judge, sample(contexts=("x",)), journal=journal)[0].value == 0.0
        assert scores(judge, sample(text="Not so."), journal=journal)[0].value == 0.0
        assert scores(replace(judge, model="m"), sample(), journal=journal)[0].value == 0.0


def test_a_judge_is_its_model_and_its_prompt():
    library = load_library()
    judge = Judge("u", "m", library["judge"], "k")
    assert judge_pin(judge) == judge_pin(replace(judge, url="v", api_key="l"))
    assert judge_pin(judge) != judge_pin(replace(judge, model="n"))
    changed = replace(judge, prompt=library["assistant"])
    assert judge_pin(judge) != judge_pin(changed)
    assert needs_of(library["judge"]) == ("retrieved_contexts",)
    assert "secret" not in repr(replace(judge, api_key="secret"))
