"""What a comparison of prompts says: how often it cries wolf, what it finds, and how it is told."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.evaluation import Coverage, Evaluation
from evals.gate import Condition
from evals.records import Answer, Decision
from gateway.database import now
from pipelines.prompt_comment import MARKER, MOST_CHARACTERS, comment
from pipelines.prompt_comparison import FALSE_ALARMS, Outcome, conclude, conditions_in
from pipelines.prompt_report import Flip, Flips, Report, page, section_of
from tests.bench.prompt_changes import NOTHING, Worse, drawn, library, pull_requests, share_failed


def test_of_1000_unchanged_prompts_at_most_one_in_20_fails() -> None:
    change = library()["ticket-classifier"]
    share, low, high = share_failed(pull_requests([change], 1_000))
    assert share <= FALSE_ALARMS, (share, low, high)


def test_nor_does_a_pull_request_that_touches_every_prompt() -> None:
    changes = [*library().values()]
    assert conditions_in(changes) > len(changes)
    share, low, _high = share_failed(pull_requests(changes, 100))
    assert low <= FALSE_ALARMS and share <= 2 * FALSE_ALARMS


def test_a_worse_prompt_is_found() -> None:
    change = library()["ticket-classifier"]
    share, _, _ = share_failed(pull_requests([change], 100, Worse(right=0.25)))
    assert share > 0.9
    share, _, _ = share_failed(pull_requests([change], 100, Worse(latency=3.0)))
    assert share > 0.9  # by its guardrail


def test_a_rejection_must_hold_for_all_conditions_of_the_run_together() -> None:
    change = library()["ticket-classifier"]
    chance, seen = random.Random(3), 0
    for _ in range(300):
        sides = drawn(change, chance, Worse(right=0.07))
        alone, among = conclude(change, *sides, 1), conclude(change, *sides, 100)
        assert alone.verdict is not None and among.verdict is not None
        if alone.outcome is Outcome.WORSE and among.outcome is not Outcome.WORSE:
            seen += 1
            assert among.outcome is Outcome.SAME and among.verdict.decision is Decision.HOLD
            assert "not worse beyond doubt among the 100 conditions" in among.reasons[0]
        assert not (among.outcome is Outcome.WORSE and alone.outcome is not Outcome.WORSE)
    assert seen


def test_both_gates_count() -> None:
    change = library()["ticket-classifier"]
    strict = Condition(metric="output_tokens", direction="decrease", margin=0.0, minimum_n=100,
                       kind="non_inferiority")  # fmt: skip
    both = replace(change, conditions=(*change.conditions, strict))
    sides = drawn(change, random.Random(1), Worse(tokens=2.0))
    assert not conclude(change, *sides, 2).failed
    assert conclude(both, *sides, 3).outcome is Outcome.WORSE


PIECES = [*"ab \n|<>[]()!`*_#&@:\\-~$", "](", "@all ", MARKER, "</code>", "<!--"]
NASTY = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@settings(max_examples=50, deadline=None)
@given(NASTY)
def test_whatever_an_answer_says_stays_text_in_one_cell(said: str) -> None:
    text = comment(_report(said))
    (row,) = [line for line in text.splitlines() if line.startswith("| c1 |")]
    assert row.count("|") == 7
    cells = row.replace("<code>", "").replace("</code>", "")
    assert not set(cells) & set("<>[]`*_!@:")
    assert text.count(MARKER) == 1


def test_a_long_report_fits_into_a_comment_and_the_page_has_all() -> None:
    report = _report("x" * 5_000, cases=300, prompts=60)
    text = comment(report)
    assert len(text) <= MOST_CHARACTERS
    assert text.startswith(MARKER)
    assert page(report).count("<td>c1</td>") == 60 * 300


def test_a_page_escapes_what_it_shows() -> None:
    shown = page(_report("<script>alert(1)</script>"))
    assert "<script" not in shown and "&lt;script&gt;" in shown


@pytest.mark.parametrize("error", ["http://g answered 400: no such field", "x answered 422: y"])
def test_requests_that_the_model_refuses_are_the_prompt_s_own_fault(error: str) -> None:
    change = library()["judge"]
    base, head = drawn(change, random.Random(1), NOTHING)
    refused = tuple((Answer(one.case_id, "", 1.0, error=error),) for one in head.cases)
    found = conclude(change, base, replace(head, answers=refused), 2)
    assert found.outcome is Outcome.UNFIT
    assert found.verdict is not None and found.verdict.decision is Decision.REJECT


def test_a_case_that_both_are_refused_is_no_fault_of_the_change() -> None:
    change = library()["judge"]
    base, head = drawn(change, random.Random(1), NOTHING)

    def refused(side: Evaluation) -> Evaluation:
        error = "http://g answered 400: too long"
        answer = Answer(side.cases[0].case_id, "", 1.0, error=error)
        return replace(side, answers=((answer,), *side.answers[1:]))

    assert conclude(change, refused(base), refused(head), 2).outcome is Outcome.SAME
    assert conclude(change, base, refused(head), 2).outcome is Outcome.UNFIT


def test_a_metric_that_hardly_any_answer_carries_is_not_judged() -> None:
    change = library()["judge"]
    base, head = drawn(change, random.Random(1), NOTHING)
    metric = change.conditions[0].metric
    rare = {**head.coverage, metric: Coverage(5, 5, len(head.cases))}
    found = conclude(change, base, replace(head, coverage=rare), 2)
    assert found.outcome is Outcome.SHORT


def _report(said: str, cases: int = 1, prompts: int = 1) -> Report:
    change = library()["judge"]
    section = section_of(conclude(change, *drawn(change, random.Random(1), NOTHING), 2))
    flip = Flip("c1", said, said, said, said, worse=True)
    section = replace(section, flips=(Flips("exact_match", (flip,) * cases),))
    return Report("main", "HEAD", (section,) * prompts, (), now())
