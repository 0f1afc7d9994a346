"""Service levels: each passes, fails or errs by itself, is a metric, and can start something."""

from datetime import UTC, datetime

import numpy as np
import pandas
import pytest

from evals.comparison import Comparison
from evals.drift_verdict import Looked
from evals.records import Decision, Verdict
from evals.reference import Reference
from evals.slas import LEAST_VALUES, SLAS, Sla, judge_slas, metric_of, slas_in_force
from evals.windows import Traffic
from pipelines.trigger_rules import When

ROWS = 200


def window(**columns):
    given = {
        "failed": np.zeros(ROWS),
        "no_answer": np.zeros(ROWS),
        "answer_refused": np.zeros(ROWS),
        "retrieval_empty": np.zeros(ROWS),
        "answer_words": np.full(ROWS, 20.0),
        "latency_ms": np.full(ROWS, 500.0),
        "ts": np.arange(ROWS),
    }
    return pandas.DataFrame(given | columns)


def share(part):
    return (np.arange(ROWS) < ROWS * part).astype(float)


def passed(kept):
    return {one.sla.name: one.passed for one in kept}


def verdict_of(kept) -> Verdict:
    rows = window()
    looked = Looked(
        traffic=Traffic(prompt="assistant", version="3"),
        reference=Reference("assistant", "f", "0" * 64, ROWS, 0, 0, "", "test"),
        comparison=Comparison(rows, rows, {}),
        level=0.001,
        found=[],
        kept=kept,
        missing=None,
    )
    return looked.verdict(datetime(2026, 5, 4, tzinfo=UTC))


def test_all_are_kept_by_good_traffic():
    kept = judge_slas(SLAS, window())
    assert passed(kept) == dict.fromkeys((one.name for one in SLAS), True)
    assert {one.rows for one in kept} == {ROWS}


@pytest.mark.parametrize(
    ("columns", "broken", "said"),
    [
        ({"failed": share(0.1)}, "sla_failed", "0.1, needs < 0.05"),
        ({"no_answer": share(0.05)}, "sla_no_answer", "0.05, needs < 0.05"),
        ({"answer_refused": share(0.6)}, "sla_refused", "0.6, needs < 0.5"),
        ({"retrieval_empty": share(0.5)}, "sla_retrieval_empty", "0.5, needs < 0.5"),
        ({"answer_words": 20 * (1 - share(0.1))}, "sla_answer_words", "0, needs >= 1"),
        ({"latency_ms": 500 + 90_000 * share(0.1)}, "sla_latency_p95", "9.05e+04, needs < 60000"),
    ],
)
def test_one_that_is_broken_breaks_no_other(columns, broken, said):
    kept = judge_slas(SLAS, window(**columns))
    assert {name for name, one in passed(kept).items() if not one} == {broken}
    (found,) = (one for one in kept if one.sla.name == broken)
    assert found.reason == said
    verdict = verdict_of(kept)
    assert verdict.decision is Decision.ALERT
    assert verdict.reasons == (f"{broken}: broken: {said}",)
    assert [one.name for one in verdict.metrics if one.passed is False] == [broken]
    assert When(metric=broken).fits(verdict) == (f"drift:assistant@3 is alert and {broken} failed")
    others = [one.name for one in SLAS if one.name != broken]
    assert not any(When(metric=other).fits(verdict) for other in others)


def test_one_that_errs_takes_no_other_along_and_is_no_alarm():
    wrong = Sla("sla_wrong", "MeanValue", "no_such_column", "lt", 1)
    unknown = Sla("sla_unknown", "NoSuchMetric", "failed", "lt", 1)
    kept = judge_slas([wrong, *SLAS, unknown], window(failed=share(0.1)))
    assert passed(kept)["sla_wrong"] is None
    assert passed(kept)["sla_unknown"] is None
    assert passed(kept)["sla_failed"] is False
    assert passed(kept)["sla_refused"] is True
    verdict = verdict_of(kept)
    assert "sla_wrong: erred: KeyError: 'no_such_column'" in verdict.reasons
    assert any(one.startswith("sla_unknown: erred: AttributeError") for one in verdict.reasons)
    alone = verdict_of(judge_slas([wrong], window()))
    assert alone.decision is Decision.HOLD


def test_a_value_that_is_no_number_errs():
    kept = judge_slas(SLAS, window(latency_ms=np.full(ROWS, np.inf)))
    (found,) = (one for one in kept if one.sla.name == "sla_latency_p95")
    assert (found.passed, found.erred, found.reason) == (None, True, "its value is nan")


def test_too_few_values_say_nothing():
    few = np.where(np.arange(ROWS) < LEAST_VALUES - 1, 1.0, np.nan)
    (found,) = (one for one in judge_slas(SLAS, window(retrieval_empty=few))
                if one.sla.name == "sla_retrieval_empty")  # fmt: skip
    assert (found.passed, found.erred) == (None, False)
    assert found.reason == f"{LEAST_VALUES - 1} values: too few"
    assert f"sla_retrieval_empty: not judged: {found.reason}" in verdict_of([found]).reasons
    enough = np.where(np.arange(ROWS) < LEAST_VALUES, 1.0, np.nan)
    (found,) = (one for one in judge_slas(SLAS, window(retrieval_empty=enough))
                if one.sla.name == "sla_retrieval_empty")  # fmt: skip
    assert found.passed is False


@pytest.mark.parametrize(
    ("condition", "limit", "kept"),
    [("lt", 20, False), ("lte", 20, True), ("gt", 20, False), ("gte", 20, True)],
)
def test_the_four_conditions(condition, limit, kept):
    one = Sla("sla_words", "MeanValue", "answer_words", condition, limit)
    (found,) = judge_slas([one], window())
    assert found.passed is kept


def test_limits_of_the_configuration_are_in_force():
    limits = {"sla_failed": 0.2, "sla_refused": None}
    found = {one.name: one.limit for one in slas_in_force(limits)}
    assert found["sla_failed"] == 0.2
    assert "sla_refused" not in found
    assert len(found) == len(SLAS) - 1
    kept = judge_slas(slas_in_force(limits), window(failed=share(0.1), answer_refused=share(0.9)))
    assert verdict_of(kept).decision is Decision.HOLD


def test_each_is_a_metric_of_evidently_with_evidentlys_own_test():
    for one in SLAS:
        metric = metric_of(one)
        assert type(metric).__name__ == one.metric
        assert [test.threshold for test in metric.tests] == [one.limit]
