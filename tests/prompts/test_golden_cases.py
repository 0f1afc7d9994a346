"""The prompts that come with the project, and the golden cases that judge them."""

import re
from typing import Any

import orjson
import pytest

from evals import extraction
from evals.gate import Condition
from evals.scorers import first_violation
from prompts.library import LIBRARY, load_library
from prompts.prompt import Prompt

GOLDEN = LIBRARY.parents[1] / "evals" / "golden"
LIBRARY_NAMES = ("assistant", "extractor", "judge", "ticket-classifier")
WITH_VARIABLES = ("assistant", "judge", "ticket-classifier")
MOST_CHARACTERS = 4000  # of a rendered case: about half of the packaged model's context


def prompt(name: str) -> Prompt:
    return load_library()[name]


def cases(name: str) -> list[dict[str, Any]]:
    path = GOLDEN / str(prompt(name).evaluation.cases)
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("name", LIBRARY_NAMES)
def test_there_are_a_hundred_cases_each_its_own(name):
    found = cases(name)
    assert len(found) >= 100
    assert len({case["case_id"] for case in found}) == len(found)
    asked = [case.get("variables") or case["messages"] for case in found]
    assert len({orjson.dumps(one, option=orjson.OPT_SORT_KEYS) for one in asked}) == len(found)


@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_every_case_is_rendered_and_fits_the_model(name):
    for case in cases(name):
        rendered = prompt(name).render(case["variables"])
        assert 0 < sum(len(message["content"]) for message in rendered) < MOST_CHARACTERS
        for value in case["variables"].values():
            texts = value if isinstance(value, list) else [value]
            for text in texts:
                text = text["text"] if isinstance(text, dict) else text
                assert text in rendered[-1]["content"]


@pytest.mark.parametrize("name", LIBRARY_NAMES)
def test_the_gate_is_one(name):
    gate = [Condition.model_validate(one) for one in prompt(name).evaluation.gate]
    assert any(one.kind == "superiority" for one in gate)
    assert {one.metric for one in gate} <= set(prompt(name).evaluation.metrics)
    assert all(one.minimum_n <= len(cases(name)) for one in gate)


def test_the_assistants_answers_are_in_its_passages_or_are_none():
    unanswerable = 0
    for case in cases("assistant"):
        wanted = case["expected"]
        passages = [
            one if isinstance(one, str) else one["text"] for one in case["variables"]["passages"]
        ]
        assert passages == case["retrieved_contexts"]
        if case["tags"]["kind"] == "unanswerable":
            unanswerable += 1
            assert wanted == "I do not know"
        else:
            found = folded(" ".join(passages))
            for one in wanted if isinstance(wanted, list) else [wanted]:
                assert folded(one) in found, case["case_id"]
                assert folded(one) in folded(case["reference"])
    assert unanswerable >= 20


def folded(text: str) -> str:
    """Without regard to case, white space and marks of Markdown."""
    return " ".join(re.sub("[`*]", "", text).casefold().split())


def test_every_ticket_has_one_of_the_six_labels():
    given = prompt("ticket-classifier")
    params: dict[str, Any] = given.params
    labels = params["structured_outputs"]["choice"]
    assert all(f"\n{label}: " in given.messages[0].content for label in labels)
    counted = [sum(case["expected"] == label for case in cases("ticket-classifier"))
               for label in labels]  # fmt: skip
    assert counted == [20] * 6


def test_the_judges_scores_are_in_its_form_and_balanced():
    params: dict[str, Any] = prompt("judge").params
    form = params["response_format"]["json_schema"]["schema"]
    found = cases("judge")
    assert all(first_violation(form, case["expected"]) is None for case in found)
    assert 0.4 < sum(case["expected"]["score"] for case in found) / len(found) < 0.6
    kinds = {"supported": 1, "contradicted": 0, "not mentioned": 0}
    assert all(kinds[case["tags"]["kind"]] == case["expected"]["score"] for case in found)


def test_the_extractor_asks_as_the_demo_does():
    given = prompt("extractor")
    assert given.params == extraction.PARAMETERS
    for case in extraction.held_out()[:20]:
        sentence = case.messages[1]["content"]
        assert given.render({"sentence": sentence}) == list(case.messages)
