"""Calibration: kappa and its bounds decide, a judge is its pin, gates refuse what is not good."""

from dataclasses import replace

import pytest
import uuid_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.migrations import upgrade
from evals.agreement import kappa
from evals.calibration import (
    LEAST_ANSWERS,
    LEAST_BOUND,
    LEAST_KAPPA,
    TRIAL,
    JudgeRefused,
    LabelledAnswer,
    NothingJudged,
    calibrate,
    calibration_of,
    labelled_answers,
    require_calibrated,
)
from evals.gate import Condition
from evals.golden_cases import GoldenCase, golden_path, load_golden
from evals.judge import Judge
from evals.metrics import Instruments
from evals.records import Answer, Case, Decision, MetricResult
from evals.verdicts import add_verdict
from gateway.database import open_database
from prompts.library import load_library
from tests.evals.scripted_judge import MODEL, scripted_judge

JUDGE = Judge("http://127.0.0.1:9/v1", MODEL, load_library()["judge"], "key")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=200))
@settings(deadline=None)
def test_kappas_bounds_hold_it_and_are_kappas(pairs):
    judged, labels = [one for one, _ in pairs], [other for _, other in pairs]
    if len(set(labels)) < 2:
        return
    found = kappa(judged, labels)
    assert -1 <= found.low <= found.value <= found.high <= 1
    mirrored = kappa([not one for one in judged], [not one for one in labels])
    assert mirrored.value == pytest.approx(found.value)  # which side is called 1 is nothing
    assert mirrored.low == pytest.approx(found.low)


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(2, 6))
@settings(deadline=None)
def test_more_of_the_same_is_known_more_surely(judged, times):
    labels = [place % 2 == 0 for place in range(len(judged))]
    few, many = kappa(judged, labels), kappa(judged * times, labels * times)
    assert many.value == pytest.approx(few.value) and many.low >= few.low - 1e-9


def labelled(count=120):
    return [
        LabelledAnswer(
            Case(f"c{place}", (), None, retrieved_contexts=(f"fact {place}",), user_input="?"),
            Answer(f"c{place}", f"fact {place}" if place % 2 else f"fable {place}", 1.0),
            supported=bool(place % 2),
        )
        for place in range(count)
    ]


def calibrated(backstage, answer, given=None, **more):
    with scripted_judge(backstage, answer) as server:
        judge = Judge(server.url, MODEL, load_library()["judge"], "key")
        return calibrate("judge", given or labelled(), Instruments(judge=judge), **more)


def says(right):
    """A judge that is wrong of every `right`-th answer; of none if that is 0."""

    def answer(body):
        text = body["messages"][-1]["content"].partition("Answer: ")[2].split("\n")[0]
        place = int(text.split()[-1])
        supported = text.startswith("fact") != bool(right and place % right == 0)
        return '{"score": 1}' if supported else '{"score": 0}'

    return answer


@pytest.mark.parametrize(("wrong", "accepted"), [(0, True), (10, True), (4, False), (2, False)])
def test_only_a_judge_that_agrees_surely_is_accepted(backstage, wrong, accepted):
    verdict, scores = calibrated(backstage, says(wrong))
    result = verdict.metrics[0]
    good = result.candidate >= LEAST_KAPPA and result.ci_low >= LEAST_BOUND
    assert accepted == good == (verdict.decision is Decision.PROMOTE) == result.passed
    assert len(scores) == 120 and (result.name, result.n) == ("kappa", 120)
    assert ("accepted" if accepted else "refused") in verdict.reasons[0]
    assert verdict.subject == f"judge:judge:{MODEL}@{verdict.evidence['pin']}"


def test_good_agreement_on_few_answers_is_not_enough(backstage):
    verdict, _ = calibrated(backstage, says(0), labelled(6))
    assert verdict.metrics[0].candidate == 1.0 and verdict.decision is Decision.REJECT


def test_what_it_cannot_judge_counts_against_it(backstage):
    right = says(0)

    def answer(body):
        place = int(body["messages"][-1]["content"].partition("Answer: ")[2].split()[1])
        return "hm" if place < 36 else right(body)

    verdict, _ = calibrated(backstage, answer)
    assert verdict.decision is Decision.REJECT
    assert verdict.metrics[0].candidate == pytest.approx(0.4)
    assert verdict.metrics[1].candidate == 36 and "36 answers could not" in verdict.reasons[1]
    with pytest.raises(NothingJudged, match="nonsense"):
        calibrated(backstage, lambda body: "hm")


def test_no_gate_goes_by_few_answers_nor_by_a_trial(backstage, database):
    few, _ = calibrated(backstage, says(0), labelled(LEAST_ANSWERS - 1))
    assert few.decision is Decision.REJECT and few.metrics[0].candidate == 1.0
    assert "99 labelled answers, and a gate needs 100" in few.reasons[0]
    trial, _ = calibrated(backstage, says(0), labelled(10), trial="other answers")
    assert trial.decision is Decision.PROMOTE and trial.subject.startswith(TRIAL)
    assert "a trial, which no gate goes by: other answers" in trial.reasons
    with database.transaction() as session:
        add_verdict(session, trial)
        with pytest.raises(JudgeRefused, match="never calibrated"):
            require_calibrated(session, [Condition(metric="judge", minimum_n=1)], JUDGE)


def test_a_metric_misspelt_in_a_gate_is_named_with_its_place(database):
    gate = [Condition(metric="charm", minimum_n=1)]
    said = r"^p\.yaml: evaluation\.gate: no metric 'charm'"
    with database.session() as session, pytest.raises(ValueError, match=said):
        require_calibrated(session, gate, None, "p.yaml: evaluation.gate")


@pytest.fixture
def database(tmp_path):
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


def test_a_gate_believes_exactly_the_judge_that_was_found_good(backstage, database):
    plain = [Condition(metric="contains", minimum_n=1)]
    resting = [Condition(metric="judge", minimum_n=1)]
    good, _ = calibrated(backstage, says(0))
    bad, _ = calibrated(backstage, says(2))
    with database.transaction() as session:
        require_calibrated(session, plain, None)
        with pytest.raises(JudgeRefused, match="no judge is set"):
            require_calibrated(session, resting, None)
        with pytest.raises(JudgeRefused, match=r"never calibrated.* evals calibrate"):
            require_calibrated(session, resting, JUDGE)
        add_verdict(session, good)
        require_calibrated(session, resting, JUDGE)
        assert calibration_of(session, "judge", JUDGE) == good
        for other in (
            Judge(JUDGE.url, "another", JUDGE.prompt, "key"),
            Judge(JUDGE.url, MODEL, load_library()["assistant"], "key"),
        ):
            with pytest.raises(JudgeRefused, match="never calibrated"):
                require_calibrated(session, resting, other)
        with pytest.raises(JudgeRefused, match="faithfulness"):
            require_calibrated(session, [Condition(metric="faithfulness", minimum_n=1)], JUDGE)
        few = MetricResult("kappa", 0.0, 1.0, 1.0, 1.0, 1.0, LEAST_ANSWERS - 1, True)
        add_verdict(session, replace(good, verdict_id=str(uuid_utils.uuid7()), metrics=(few,)))
        with pytest.raises(JudgeRefused, match="99 labelled answers, and a gate needs 100"):
            require_calibrated(session, resting, JUDGE)
        bad = replace(bad, verdict_id=str(uuid_utils.uuid7()))
        add_verdict(session, bad)  # the newest word counts
        with pytest.raises(JudgeRefused, match=r"no gate believes it: kappa"):
            require_calibrated(session, resting, JUDGE)


def test_labels_are_read_and_what_has_none_is_named():
    golden = load_golden(golden_path("judge.jsonl"))
    found = labelled_answers(JUDGE, golden)
    assert len(found) == len(golden) >= 100
    assert all(one.answer.text and one.case.retrieved_contexts for one in found)
    assert 0.4 < sum(one.supported for one in found) / len(found) < 0.6
    case = GoldenCase("x", golden[0].variables, expected={"score": 3}, where="file.jsonl:9")
    with pytest.raises(ValueError, match=r"file\.jsonl:9: expected: "):
        labelled_answers(JUDGE, [case])
    with pytest.raises(ValueError, match="no variable for 'response'"):
        labelled_answers(Judge("u", "m", load_library()["assistant"], "k"), golden)
