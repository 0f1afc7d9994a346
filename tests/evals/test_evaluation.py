"""An evaluation of scripted answers: every case with every seed, once, measured by its place."""

from collections import Counter

import pytest

from evals.evaluation import Client, evaluate_prompt, measured
from evals.golden_cases import GoldenCase
from evals.journal import Journal
from evals.metrics import metrics_named
from prompts.library import parse_prompt
from tests.evals.scripted_judge import scripted_judge
from tests.scripted_upstream import ScriptedUpstreamProcess

PROMPT = """\
name: asker
template: "{said} {{{{ word }}}}"
variables: [{{name: word}}, {{name: more, required: {required}, default: {default}}}]
model: {model}
params: {{temperature: 0}}
evaluation:
  metrics: [contains, latency]
  fields: {{user_input: word}}
  seeds: {seeds}
"""


def prompt(model="echo", seeds=1, said="say", required="false", default='"x"'):
    text = PROMPT.format(model=model, seeds=seeds, said=said, required=required, default=default)
    return parse_prompt(text.encode(), "asker.yaml")


def golden(count):
    return [
        GoldenCase(f"c{number}", {"word": f"word-{number}"}, expected=f"word-{number}")
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def upstream():
    with ScriptedUpstreamProcess() as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("evals.answers.PAUSE_SECONDS", 0.01)


def client(url, **more):
    return Client(url, "key", embeddings=None, **more)


def test_every_case_is_asked_with_every_seed_and_the_mean_counts(backstage):
    def answer(body):
        word = body["messages"][0]["content"].split()[-1]
        return word if body["seed"] in (0, 2) else "no"

    said = []
    with scripted_judge(backstage, answer) as server:
        found = evaluate_prompt(
            prompt(seeds=3), golden(5), client(server.url), say=lambda *one: said.append(one)
        )
        asked = Counter((body["messages"][0]["content"], body["seed"]) for body in server.bodies)
        metadata = [body["metadata"] for body in server.bodies]
    assert len(asked) == 15 and set(asked.values()) == {1}
    assert all(one == {"purpose": "evaluation", "prompt": "asker"} for one in metadata)
    assert found.values("contains") == [pytest.approx(2 / 3)] * 5
    assert [len(row) for row in found.answers] == [3] * 5
    assert ("asking", 15, 15) in said and said[-1] == ("measured", 2, 2)
    assert found.targets == {"judge/scripted-judge": 15}


def test_values_keep_the_order_of_the_cases_and_what_failed_is_wrong(upstream):
    cases = golden(30)
    cases[7] = GoldenCase("c7", {"word": "other"}, expected="word-7")
    found = evaluate_prompt(prompt(), cases, client(upstream.url))
    assert found.values("contains") == [float(place != 7) for place in range(30)]
    assert all(value > 0 for value in found.known("latency"))
    assert [case.case_id for case in found.cases] == [one.case_id for one in cases]
    broken = evaluate_prompt(prompt("chat,status=400"), golden(3), client(upstream.url))
    assert broken.values("contains") == [0.0] * 3  # an answer that failed is wrong,
    assert broken.values("latency") == [None] * 3  # and took no time that anybody knows
    assert "answered 400" in str(broken.answers[0][0].error)


def test_a_case_that_a_version_cannot_be_rendered_with_has_no_value_and_is_not_asked(upstream):
    upstream.reset()
    strict = prompt(required="true", default="null")
    cases = [*golden(2), GoldenCase("full", {"word": "a", "more": "b"}, expected="a")]
    found = evaluate_prompt(strict, cases, client(upstream.url))
    assert found.values("contains") == [None, None, 1.0]
    assert "more: missing" in found.lost["c0"] and len(upstream.calls()) == 1
    assert found.coverage["contains"].carrying == 1 and found.coverage["contains"].total == 3


def test_a_journal_is_of_this_prompt_model_seed_and_case(upstream, tmp_path):
    upstream.reset()
    with Journal(tmp_path / "j") as journal:
        first = evaluate_prompt(prompt(), golden(4), client(upstream.url), journal=journal)
        again = evaluate_prompt(prompt(), golden(4), client(upstream.url), journal=journal)
        assert len(upstream.calls()) == 4 and again.answers == first.answers
        for other in (prompt(said="shout"), prompt("chat"), prompt(seeds=2)):
            before = len(upstream.calls())
            evaluate_prompt(other, golden(4), client(upstream.url), journal=journal)
            assert len(upstream.calls()) == before + 4


def test_an_unknown_metric_is_said_before_anything_is_asked(upstream):
    upstream.reset()
    with pytest.raises(ValueError, match="no metric 'charm'"):
        evaluate_prompt(prompt(), golden(2), client(upstream.url), metrics=["charm"])
    assert not upstream.calls()


def test_other_metrics_can_be_measured_afterwards(upstream):
    found = evaluate_prompt(prompt(), golden(3), client(upstream.url))
    again = measured(found, metrics_named(["exact", "refusal"]), client(upstream.url))
    assert set(again.scores) == {"exact_match", "refusal"} and again.answers == found.answers
    assert again.values("exact") == again.values("exact_match")


def test_a_journal_is_of_one_gateway(upstream, tmp_path):
    upstream.reset()
    with Journal(tmp_path / "j") as journal:
        for url in (upstream.url, upstream.url.replace("127.0.0.1", "localhost")):
            evaluate_prompt(prompt(), golden(4), client(url), journal=journal)
    assert len(upstream.calls()) == 8
