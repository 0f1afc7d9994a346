"""Training of tabular models: the search looks ahead in time, and the same seed gives the same."""

import numpy as np
import pytest

from pipelines import boosting
from pipelines.tabular_candidates import CANDIDATES
from pipelines.tabular_package import model_digest, served_name
from pipelines.tabular_rows import BadData, read_rows
from pipelines.tabular_spec import TabularTraining
from pipelines.tabular_training import train
from tests.pipelines.tabular_data import FEATURES, flights, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's, while it is imported


def trained(rows=None, **training):
    heard = []
    given = TabularTraining(**{"search": 2, **training})
    found = train(rows or rows_of(flights()), given, lambda step, metrics: heard.append(metrics))
    return found, heard


def saved(found, rows, folder):
    found.candidate.save(found.model, folder, rows.features.head(5), {"dataset_id": "d"})
    return model_digest(folder, rows.names)


def test_the_best_of_all_trials_on_later_days_is_chosen():
    found, heard = trained()
    assert [one.algorithm for one in found.trials] == [
        name for name in CANDIDATES for _ in range(2)
    ]
    assert found.best.log_loss == min(one.log_loss for one in found.trials)
    assert 0.6 < found.best.auc < 0.8
    assert [metrics["loss"] for metrics in heard] == [one.log_loss for one in found.trials]
    assert {metrics["steps"] for metrics in heard} == {6}


def test_nothing_is_fitted_on_what_comes_later():
    """Labels of the last 15 % of the days are turned round: only the calibration may notice."""
    table = flights(days=100)
    late = (table["scheduled_departure"] >= table["scheduled_departure"].min().normalize()
            + np.timedelta64(85, "D"))  # fmt: skip
    turned = table.assign(late=table["late"] ^ late)
    one, _ = trained(rows_of(table), candidates=["histogram"])
    other, _ = trained(rows_of(turned), candidates=["histogram"])
    assert one.trials == other.trials
    frozen = [found.model.calibrated_classifiers_[0].estimator.estimator for found in (one, other)]
    rows = rows_of(table).features
    assert (frozen[0].predict_proba(rows) == frozen[1].predict_proba(rows)).all()
    assert not np.allclose(one.model.predict_proba(rows), other.model.predict_proba(rows))


@pytest.mark.parametrize("algorithm", CANDIDATES)
def test_the_same_seed_gives_the_same_model_under_the_same_name(algorithm, tmp_path):
    rows = rows_of(flights())
    digests = []
    for number, seed in enumerate((7, 7, 8)):
        found, _ = trained(rows, candidates=[algorithm], seed=seed, search=3)
        digests.append(saved(found, rows, tmp_path / str(number)))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert served_name("flight-delay", digests[0]) == f"flight-delay-{digests[0][:12]}"


def test_calibration_brings_probabilities_in_line_with_the_days_that_came_last():
    table = flights(days=100, seed=3)
    more = table["scheduled_departure"] >= table["scheduled_departure"].min().normalize()
    more &= np.arange(len(table)) >= 0.85 * len(table)
    table["late"] |= more & (np.random.default_rng(0).random(len(table)) < 0.4)
    for name in CANDIDATES:
        rows = rows_of(table)
        plain, _ = trained(rows, candidates=[name], calibration="none", search=1)
        bent, _ = trained(rows, candidates=[name], search=1)
        last = rows.where(np.arange(len(rows)) >= 0.85 * len(rows))
        off = [
            abs(
                found.candidate.probabilities(found.model, last.features).mean()
                - last.labels.mean()
            )
            for found in (plain, bent)
        ]
        assert off[1] < 0.01 < off[0], name


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.6, -0.4), (1.7, 2.0)])
def test_platts_scaling_of_trees_is_trees(slope, intercept):
    rows = rows_of(flights())
    parameters = CANDIDATES["xgboost"].first
    model = boosting.fit(parameters, rows.features, rows.labels, 0)
    plain = boosting.probabilities(model, rows.features)
    odds = slope * np.log(plain / (1 - plain)) + intercept
    found = boosting.probabilities(boosting.scaled(model, slope, intercept), rows.features)
    assert found == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-5)


def test_a_training_period_of_one_class_is_refused():
    rows = rows_of(flights().assign(late=False))
    with pytest.raises(BadData, match="training, fit days: all 2520 rows are of one class"):
        trained(rows)


def test_a_period_of_three_days_is_refused():
    with pytest.raises(BadData, match="3 days of rows are too few to keep some for calibration"):
        trained(rows_of(flights(days=3, per_day=500)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="wind"), "train.parquet: column 'wind' is missing"),
        (
            lambda table: table.assign(wind=table["wind"].mask(table.index == 3, float("inf"))),
            "train.parquet: column 'wind' is infinite in 1 of",
        ),
        (lambda table: table.assign(late=7.5), "train.parquet: label 'late' is 7.5; 0 or 1"),
        (lambda table: table.assign(late="soon"), "train.parquet: label 'late' is soon; 0 or 1"),
        (
            lambda table: table.assign(wind=float("nan")),
            "column 'wind' has no value in any of 3600 rows",
        ),
        (lambda table: table.assign(wind="strong"), "column 'wind' is object, a number is wanted"),
        (lambda table: table.assign(late=None), "no row has a value of 'late'"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(change, message, tmp_path):
    file = tmp_path / "train.parquet"
    change(flights()).to_parquet(file)
    with pytest.raises(BadData, match=message):
        read_rows(file, FEATURES, "late", "scheduled_departure")


def test_rows_are_read_in_the_order_of_time_without_those_that_have_no_label(tmp_path):
    table = flights(days=2, per_day=5)
    table["late"] = table["late"].astype("boolean")
    table.loc[0, "late"] = None
    table.sample(frac=1, random_state=0).to_parquet(tmp_path / "train.parquet")
    rows = read_rows(tmp_path / "train.parquet", FEATURES, "late", "scheduled_departure")
    assert len(rows) == 9
    assert rows.table["scheduled_departure"].is_monotonic_increasing
    assert [str(day) for day in np.unique(rows.days)] == ["2013-01-01", "2013-01-02"]
    assert list(rows.features) == list(FEATURES)
