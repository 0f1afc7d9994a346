"""What the gate decides, and how it says so."""

import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evals.compare import Measured
from evals.gate import Condition, judge
from evals.records import Decision

BETTER = Condition(metric="right", margin=0.05, minimum_n=100)
NOT_SLOWER = Condition(
    metric="latency",
    direction="decrease",
    kind="non_inferiority",
    margin=0.2,
    relative=True,
    minimum_n=100,
)


def bits(share, n=240, seed=0):
    values = [1.0] * round(share * n) + [0.0] * (n - round(share * n))
    random.Random(seed).shuffle(values)
    return values


def times(mean, n=240, seed=0):
    draw = random.Random(seed)
    return [draw.gauss(mean, mean / 10) for _ in range(n)]


def verdict_on(results, *conditions):
    return judge("candidate", "base", results, conditions, evidence={"dataset_id": "d"})


def test_promote_says_why():
    results = {
        "right": (bits(0.11), bits(0.78, seed=1)),
        "latency": (times(300), times(310, seed=1)),
        "output_tokens": ([20.0, 21.0] * 120, [20.0, 19.0] * 120),
    }
    verdict = verdict_on(results, BETTER, NOT_SLOWER)
    assert verdict.decision is Decision.PROMOTE
    assert verdict.subject == "candidate"
    assert verdict.evidence == {"dataset_id": "d"}
    assert verdict.reasons[0] == (
        "right: 0.779 against 0.108, difference +0.671, 95 % interval [+0.597, +0.730], "
        "needs > +0.05: passed"
    )
    assert verdict.reasons[1] == (
        "latency: 312.3 against 299.1, difference +13.3, 95 % interval [+7.7, +18.8], "
        "needs <= +59.8 (20 % of the baseline): passed"
    )
    assert [(one.name, one.passed) for one in verdict.metrics] == [
        ("right", True),
        ("latency", True),
        ("output_tokens", None),
    ]
    assert verdict.created_at.tzinfo is not None


def test_a_broken_guardrail_rejects_whatever_else_is_better():
    results = {
        "right": (bits(0.1), bits(0.9, seed=1)),
        "latency": (times(300), times(450, seed=1)),
    }
    verdict = verdict_on(results, BETTER, NOT_SLOWER)
    assert verdict.decision is Decision.REJECT
    assert verdict.reasons[0].startswith("latency: 453.4 against 299.1")
    assert verdict.reasons[0].endswith(": it is worse than allowed")
    assert [one.passed for one in verdict.metrics] == [True, False]


def test_a_guardrail_that_is_not_known_well_holds():
    draw = random.Random(1)
    spread = [draw.gauss(330, 500) for _ in range(240)]
    results = {"right": (bits(0.1), bits(0.9, seed=1)), "latency": (times(300), spread)}
    verdict = verdict_on(results, BETTER, NOT_SLOWER)
    assert verdict.decision is Decision.HOLD
    assert verdict.reasons[0].startswith("latency: ")
    assert verdict.reasons[0].endswith(": not shown")
    assert verdict.metrics[1].passed is None


@pytest.mark.parametrize(
    ("share", "decision", "passed", "word"),
    [
        (0.80, Decision.PROMOTE, True, "passed"),
        (0.58, Decision.HOLD, None, "not shown"),
        (0.50, Decision.HOLD, None, "not shown"),
        (0.30, Decision.REJECT, False, "it is worse"),
    ],
)
def test_superiority(share, decision, passed, word):
    verdict = verdict_on({"right": (bits(0.5), bits(share, seed=1))}, BETTER)
    assert (verdict.decision, verdict.metrics[0].passed) == (decision, passed)
    assert verdict.reasons[0].endswith(f": {word}")


def test_a_gain_that_is_known_to_be_too_small_holds():
    same = bits(0.5, 2000)
    better = [1.0] * 20 + same[20:]
    verdict = verdict_on({"right": (same, better)}, BETTER)
    assert verdict.decision is Decision.HOLD
    assert verdict.metrics[0].passed is False
    assert verdict.reasons[0].endswith(": the improvement is too small")


def test_the_same_answers_are_no_reason_to_promote_but_keep_a_guardrail():
    same = bits(0.5)
    guard = BETTER.model_copy(update={"kind": "non_inferiority", "margin": 0.1})
    verdict = verdict_on({"right": (same, same)}, guard)
    assert verdict.metrics[0].passed is True
    assert verdict.decision is Decision.HOLD
    assert verdict.reasons[0].startswith("no condition asks for an improvement")


def test_fewer_is_better_where_that_is_said():
    fewer = Condition(metric="tokens", direction="decrease", margin=2, minimum_n=10)
    before, after = [20.0, 22.0, 24.0] * 20, [15.0, 17.0, 18.0] * 20
    verdict = verdict_on({"tokens": (before, after)}, fewer)
    assert verdict.decision is Decision.PROMOTE
    assert "needs < -2: passed" in verdict.reasons[0]
    assert verdict_on({"tokens": (after, before)}, fewer).decision is Decision.REJECT


def test_too_few_pairs_decide_nothing():
    for after in (bits(1.0, 99), bits(0.0, 99)):
        verdict = verdict_on({"right": (bits(0.5, 99), after)}, BETTER)
        assert verdict.decision is Decision.HOLD
        assert verdict.reasons == ("right: 99 pairs of values, needs 100: not enough",)
        assert verdict.metrics[0].n == 99


def test_a_metric_that_was_not_measured_holds():
    verdict = verdict_on({"wrong": (bits(0.1), bits(0.9))}, BETTER)
    assert verdict.decision is Decision.HOLD
    assert verdict.reasons == ("right: was not measured (there are: wrong): not known",)
    assert verdict_on({}).decision is Decision.HOLD
    assert verdict_on({"right": ([], [])}, BETTER).decision is Decision.HOLD


def test_a_candidate_without_a_value_counts_as_wrong():
    before = [0.0] * 120
    after = [1.0] * 60 + [None] * 30 + [float("nan")] * 30
    verdict = verdict_on({"right": (before, after)}, BETTER)
    assert verdict.metrics[0].candidate == 0.5
    assert verdict.metrics[0].n == 120
    assert verdict.reasons[0].endswith(
        "; 60 of 120 answers of the candidate have no value and count as wrong "
        "(case 61, 62, 63, 64, 65, …)"
    )


def test_where_less_is_better_a_missing_value_counts_as_one():
    refusals = Condition(metric="refused", direction="decrease", minimum_n=10)
    verdict = verdict_on({"refused": ([0.0] * 20, [None] * 20)}, refusals)
    assert verdict.metrics[0].candidate == 1.0
    assert verdict.decision is Decision.REJECT


def test_what_is_left_out_is_named_and_does_not_count():
    before, after = times(300, 101), times(300, 101, seed=1)
    before[3] = after[6] = None
    guard = NOT_SLOWER.model_copy(update={"minimum_n": 99})
    verdict = verdict_on({"latency": (before, after)}, guard)
    assert verdict.metrics[0].n == 99
    assert "; 2 of 101 pairs have no value and are left out (case 4, 7)" in verdict.reasons[-1]
    held = verdict_on({"latency": (before, after)}, NOT_SLOWER)
    assert held.reasons[-1] == (
        "latency: 99 pairs of values, needs 100: not enough"
        "; 2 of 101 pairs have no value and are left out (case 4, 7)"
    )


def test_a_baseline_without_a_value_is_left_out():
    verdict = verdict_on({"right": ([None, *bits(0.2)], [1.0, *bits(0.9)])}, BETTER)
    assert verdict.metrics[0].n == 240
    assert "1 of 241 pairs have no value and are left out (case 1)" in verdict.reasons[0]


def test_sides_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="right: 240 values of the baseline, 239 of the candidate"):
        verdict_on({"right": (bits(0.5), bits(0.5, 239))}, BETTER)
    with pytest.raises(ValueError, match="latency: 2 values"):
        verdict_on({"latency": ([1.0, 2.0], [1.0])})


@given(
    st.integers(0, 99),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["superiority", "non_inferiority"]),
)
def test_never_promote_below_the_minimum(n, before, after, kind):
    condition = BETTER.model_copy(update={"kind": kind, "margin": 0.0})
    verdict = verdict_on({"right": (bits(before, n), bits(after, n))}, condition)
    assert verdict.decision is Decision.HOLD


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=100, max_size=300))
def test_nobody_is_promoted_both_ways(pairs):
    one, other = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    there = verdict_on({"right": (one, other)}, BETTER).decision
    back = verdict_on({"right": (other, one)}, BETTER).decision
    assert (there == Decision.PROMOTE) <= (back == Decision.REJECT)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3), st.floats(0.01, 0.3))
def test_a_greater_margin_is_never_easier(before, after, margin, more):
    results = {"right": (bits(before), bits(after, seed=1))}
    easy = BETTER.model_copy(update={"margin": margin})
    hard = BETTER.model_copy(update={"margin": margin + more})
    if verdict_on(results, hard).decision is Decision.PROMOTE:
        assert verdict_on(results, easy).decision is Decision.PROMOTE


@given(st.lists(st.integers(0, 239), unique=True, max_size=240))
def test_failing_never_helps_a_candidate(failed):
    before, after = bits(0.3), bits(0.6, seed=1)
    holes = [None if place in failed else value for place, value in enumerate(after)]
    whole = verdict_on({"right": (before, after)}, BETTER).metrics[0]
    holed = verdict_on({"right": (before, holes)}, BETTER).metrics[0]
    assert holed.n == whole.n
    assert holed.ci_low is not None
    assert whole.ci_low is not None
    assert holed.ci_low <= whole.ci_low


def test_conditions_in_yaml():
    text = """
    - {metric: right, margin: 0.05, minimum_n: 200}
    - {metric: latency, direction: decrease, kind: non_inferiority, margin: 0.2, relative: true,
       minimum_n: 200}
    """
    gate = TypeAdapter(tuple[Condition, ...]).validate_python(yaml.safe_load(text))
    assert gate[0] == BETTER.model_copy(update={"minimum_n": 200})
    assert gate[1] == NOT_SLOWER.model_copy(update={"minimum_n": 200})


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": -0.1},
        {"margin": float("nan")},
        {"minimum_n": 0},
        {"direction": "up"},
        {"kind": "superior"},
        {"confidence": 95},
        {"confidence": float("nan")},
        {"margn": 0.1},
    ],
)
def test_a_wrong_condition_is_refused(wrong):
    with pytest.raises(ValidationError):
        Condition.model_validate({"metric": "right", "minimum_n": 1} | wrong)


@pytest.mark.parametrize(
    ("scale", "text"),
    [(1.0, "0.200 against 0.400"), (3.0, "0.60 against 1.20"), (900.0, "180.0 against 360.0")],
)
def test_figures_are_as_fine_as_they_need_to_be(scale, text):
    values = ([0.3 * scale, 0.5 * scale] * 60, [0.1 * scale, 0.3 * scale] * 60)
    assert text in verdict_on({"right": values}, BETTER).reasons[0]


def test_small_figures_are_not_rounded_away():
    cost = Condition(metric="cost", direction="decrease", minimum_n=10)
    verdict = verdict_on({"cost": ([4e-6, 6e-6] * 20, [2e-6, 3.5e-6] * 20)}, cost)
    assert verdict.reasons[0].startswith("cost: 2.75e-06 against 5e-06, difference -2.25e-06")


FAILS = st.sampled_from([None, float("nan")])
SHARES = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=1)


def by_judge(before, after, condition=BETTER):
    return judge("candidate", "base", {"right": (before, after)}, [condition], {}, ["right"])


@given(SHARES, FAILS)
def test_what_a_judge_does_not_say_is_nobodys_fault(pairs, nothing):
    """Missing values of an instrument decide nothing: it is as if those cases were not there."""
    condition = BETTER.model_copy(update={"minimum_n": 1, "margin": 0.0})
    before = [nothing if lost else float(value) for value, lost, _, _ in pairs]
    after = [nothing if lost else float(value) for _, _, value, lost in pairs]
    whole = [(float(one), float(two)) for one, lost, two, gone in pairs if not (lost or gone)]
    kept = [one for one, _ in whole], [other for _, other in whole]
    found, without = by_judge(before, after, condition), by_judge(kept[0], kept[1], condition)
    assert found.metrics[0].n == len(whole)
    assert found.metrics[0].delta == without.metrics[0].delta
    lacking = sum(gone and not lost for _, lost, _, gone in pairs)
    lacked = sum(lost and not gone for _, lost, _, gone in pairs)
    if lacking > max(0.05 * len(pairs), lacked):
        assert found.decision is Decision.HOLD and found.metrics[0].passed is None
    else:
        assert found.decision is without.decision


def rejections(by_instrument):
    """Of 1,000 pairs of unchanged prompts: of their 112 cases one of 25 comes out otherwise than it
    would, and one judgement of twenty fails, on either side."""
    draw, rejected = random.Random(4), 0
    condition = BETTER.model_copy(update={"margin": 0.0, "minimum_n": 80})

    def said(right):
        return None if draw.random() < 0.05 else float(right != (draw.random() < 0.04))

    for _ in range(1000):
        rights = [draw.random() < 0.7 for _ in range(112)]
        values = [said(one) for one in rights], [said(one) for one in rights]
        verdict = judge("candidate", "base", {"right": values}, [condition], {}, by_instrument)
        rejected += verdict.decision is Decision.REJECT
    return rejected


def test_a_judge_that_sometimes_fails_rejects_no_unchanged_prompt():
    assert rejections(["right"]) <= 50
    assert rejections([]) > 100  # where its silence counts as a wrong answer


def test_half_of_the_values_do_not_promote():
    before, after = [0.7 + place % 2 / 100 for place in range(200)], [None] * 100 + [0.9] * 100
    for verdict in (verdict_on({"right": (before, after)}, BETTER), by_judge(before, after)):
        assert verdict.decision is Decision.HOLD and verdict.metrics[0].passed is None
        assert "not known: 100 answers of the candidate alone have no value" in verdict.reasons[0]
    # What both lack, or the baseline more, flatters nobody.
    assert by_judge([None] * 100 + before[100:], after).decision is Decision.PROMOTE
    after = [None] * 50 + [0.9] * 150
    assert by_judge([None] * 100 + before[100:], after).decision is Decision.PROMOTE


def test_where_a_missing_value_is_wrong_it_may_still_reject_but_not_promote():
    worse = verdict_on({"right": ([1.0] * 120, [1.0] * 60 + [None] * 60)}, BETTER)
    assert worse.decision is Decision.REJECT
    better = verdict_on({"right": ([0.0] * 119 + [1.0] * 8, [1.0] * 119 + [None] * 8)}, BETTER)
    assert better.decision is Decision.HOLD and "8 answers" in better.reasons[0]


@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.79, -1.0])
def test_a_gate_that_believes_chance_is_refused(confidence):
    with pytest.raises(ValidationError, match=r"a confidence of at least 0\.8"):
        Condition.model_validate({"metric": "right", "minimum_n": 1, "confidence": confidence})
    assert Condition(metric="right", minimum_n=1, confidence=0.8).confidence == 0.8


DRAWS = tuple(0.03 + 0.001 * step for step in range(-15, 16))  # standard deviation 0.0091


@pytest.mark.parametrize(
    ("candidate", "margin", "decision", "word"),
    [
        (0.73, 0.0, Decision.PROMOTE, "passed"),
        (0.73, 0.02, Decision.HOLD, "not shown"),
        (0.73, 0.1, Decision.HOLD, "the improvement is too small"),
        (0.60, 0.0, Decision.REJECT, "it is worse"),
    ],
)
def test_what_was_measured_on_all_rows_is_judged_by_its_draws(candidate, margin, decision, word):
    measured = Measured("auc", 0.70, candidate, 5000, DRAWS, 40, "the worst is UA")
    condition = Condition(metric="auc", margin=margin, minimum_n=1000)
    verdict = verdict_on({"auc": measured, "brier": measured}, condition)
    assert verdict.decision is decision
    assert verdict.reasons[0].endswith(f": {word}; the worst is UA")
    assert [one.n for one in verdict.metrics] == [5000, 5000]


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (
            Measured("auc", None, None, 40, note="all 40 rows are of one class (0)"),
            "auc: not known; all 40 rows are of one class (0)",
        ),
        (
            Measured("auc", 0.7, 0.8, 999, DRAWS, 40),
            "auc: 999 rows, needs 1000: not enough",
        ),
        (
            Measured("auc", 0.7, 0.8, 1000, (), 3, "3 days of rows, an interval needs 10"),
            "auc: 0.800 against 0.700, difference +0.100, no interval: not known; "
            "3 days of rows, an interval needs 10",
        ),
    ],
)
def test_what_could_not_be_measured_well_holds_and_says_why(measured, reason):
    verdict = verdict_on({"auc": measured}, Condition(metric="auc", minimum_n=1000))
    assert (verdict.decision, verdict.reasons) == (Decision.HOLD, (reason,))
