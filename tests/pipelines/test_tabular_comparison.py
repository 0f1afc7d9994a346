"""Champion and candidate on the same later rows: each verdict for the right reason."""

import numpy as np
import pandas as pd
import pytest

from evals.gate import Condition, judge
from evals.records import Decision
from gateway.tabular_model import load_model
from pipelines.leaks import what_features_know
from pipelines.tabular_comparison import Subject, compare_models
from pipelines.tabular_rows import BadData
from pipelines.tabular_spec import TabularEvaluation, TabularTraining
from pipelines.tabular_training import train
from tests.pipelines.tabular_data import FEATURES, flights, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's, while it is imported

EVALUATION = TabularEvaluation(slices=("carrier",), threshold=0.3, draws=500, timed_rows=5)
TABLE = flights(days=90, per_day=100)
LAST = TABLE["scheduled_departure"] >= TABLE["scheduled_departure"].min() + pd.Timedelta(days=60)
NO_WORSE = {"kind": "non_inferiority", "minimum_n": 1000}
LESS = {"direction": "decrease", **NO_WORSE}
GATE = [
    Condition(metric="auc", margin=0.01, minimum_n=1000),
    Condition(metric="brier", margin=0.002, **LESS),
    Condition(metric="worst_slice_auc", margin=0.05, **NO_WORSE),
    Condition(metric="leak_auc", margin=0.3, **LESS),
    Condition(metric="size_mb", margin=5, **(LESS | {"minimum_n": 1})),
]


def made(folder, names=FEATURES, seed=0, rows=TABLE[~LAST], algorithm="histogram", noise=0.0):
    """A model fitted on the first days, as it is served; `noise` blurs what it learnt from."""
    given = rows_of(rows, names)
    learnt = given.features + noise * np.random.default_rng(1).normal(size=(len(given), len(names)))
    blurred = rows_of(rows.assign(**{name: learnt[name].to_numpy() for name in names}), names)
    training = TabularTraining(candidates=(algorithm,), search=1, seed=seed)
    found = train(blurred, training, lambda step, metrics: None)
    found.candidate.save(found.model, folder, given.features.head(3), {})
    return Subject(load_model(folder), folder)


def base_rate():
    return Subject(None, None, float(TABLE[~LAST]["late"].mean()))


def compared(champion, candidate, table=TABLE, names=FEATURES, evaluation=EVALUATION):
    train_rows, test_rows = rows_of(table[~LAST], names), rows_of(table[LAST], names)
    return compare_models(champion, candidate, train_rows, test_rows, evaluation)


def verdict(found, gate=GATE):
    return judge("new", "old", found.metrics, gate, evidence={})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return made(tmp_path_factory.mktemp("good") / "flight-delay-good")


def test_a_model_that_beats_the_base_rate_is_promoted(good):
    found = compared(base_rate(), good)
    judged = verdict(found)
    assert judged.decision is Decision.PROMOTE, judged.reasons
    metrics = {metric.name: metric for metric in judged.metrics}
    assert metrics["auc"].baseline == 0.5
    assert 0.6 < metrics["auc"].candidate < 0.8
    assert metrics["auc"].n == len(TABLE[LAST])
    assert metrics["brier"].ci_high < 0
    assert 0 < metrics["size_mb"].candidate < 5
    assert metrics["size_mb"].baseline == 0
    assert 0 < metrics["latency_ms"].candidate < 1000
    assert [one.name for one in found.slices] == ["carrier=AA", "carrier=DL", "carrier=UA"]


def test_a_retrain_that_does_not_help_is_held(good, tmp_path):
    again = made(tmp_path / "again", seed=1, algorithm="xgboost")
    judged = verdict(compared(good, again))
    assert judged.decision is Decision.HOLD
    assert judged.reasons[0].startswith("auc: ")
    assert judged.reasons[0].endswith(("the improvement is too small", "not shown"))


def test_the_champion_itself_again_is_held(good):
    judged = verdict(compared(good, good))
    assert judged.decision is Decision.HOLD
    assert "difference +0.000, 95 % interval [+0.000, +0.000]" in judged.reasons[0]


def test_a_model_that_is_worse_is_rejected(good, tmp_path):
    blurred = made(tmp_path / "blurred", noise=8.0)
    judged = verdict(compared(good, blurred))
    assert judged.decision is Decision.REJECT
    assert judged.reasons[0].startswith("auc: ")
    assert judged.reasons[0].endswith(": it is worse")


def test_a_leak_is_rejected_and_named_however_good_the_model_looks(good, tmp_path):
    names = (*FEATURES, "dep_delay")
    leaking = made(tmp_path / "leaking", names=names)
    found = compared(good, leaking, names=names)
    judged = verdict(found)
    auc = judged.metrics[0]
    assert auc.passed
    assert auc.candidate > 0.95
    assert judged.decision is Decision.REJECT
    assert judged.reasons[0].startswith("leak_auc: ")
    assert "it is worse than allowed; alone: dep_delay 0.9" in judged.reasons[0]


def test_a_value_that_is_missing_where_it_happened_is_a_leak_too():
    missing = TABLE.assign(gate_time=np.where(TABLE["late"], np.nan, 1.0))
    names = (*FEATURES, "gate_time")
    known = what_features_know(rows_of(missing[~LAST], names), rows_of(missing[LAST], names))
    assert (known[0].feature, known[0].auc) == ("gate_time", 1.0)
    assert known[1].auc < 0.75


def test_what_knows_by_its_middle_is_a_leak_too():
    side = np.random.default_rng(0).choice([-1.0, 1.0], len(TABLE))
    names = (*FEATURES, "bent")
    bent = TABLE.assign(bent=np.where(TABLE["late"], 0.0, side))
    known = what_features_know(rows_of(bent[~LAST], names), rows_of(bent[LAST], names))
    assert (known[0].feature, known[0].auc) == ("bent", 1.0)


def test_test_rows_of_one_class_hold(good):
    table = TABLE.assign(late=TABLE["late"] & ~LAST)
    judged = verdict(compared(base_rate(), good, table=table), GATE[:1])
    assert judged.decision is Decision.HOLD
    assert judged.reasons == (f"auc: not known; all {LAST.sum()} rows are of one class (0)",)


def test_rows_that_the_champion_does_not_know_are_refused(good, tmp_path):
    narrow = made(tmp_path / "narrow", names=FEATURES[:2])
    with pytest.raises(BadData, match="flight-delay-good: column 'record' is missing"):
        compared(good, narrow, table=TABLE.drop(columns="record"), names=FEATURES[:2])


def test_a_slice_that_is_not_there_is_refused(good):
    with pytest.raises(BadData, match="no column 'airport'"):
        compared(base_rate(), good, evaluation=TabularEvaluation(slices=("airport",)))


def test_predictions_and_slices_are_left_for_reports(good, tmp_path):
    found = compared(base_rate(), good)
    found.write(tmp_path, rows_of(TABLE[LAST]))
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table) == ["day", "label", "champion", "candidate"]
    assert len(table) == LAST.sum()
    assert (tmp_path / "slices.json").read_bytes().startswith(b'[{"column":"carrier"')
