"""Looks at a made-up log of predictions: what is found, what is not, what is said, what is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from evals.drift import look
from evals.drift_plan import DriftPlan
from evals.drift_verdict import DAMAGED, NONE
from evals.prediction_plan import Predictions
from evals.prediction_reference import VERSIONS
from evals.records import Decision, Verdict
from evals.reference import FOLDER, find
from evals.spending import LEVEL
from gateway.audit import AuditRow
from gateway.database import now
from tests.evals.prediction_log import ALIAS, VERSION, Made, PredictionHome

KEY = f"model:{ALIAS}"
CONCEPT = {"concept_brier", "concept_calibration", "concept_auc"}


@contextmanager
def home_in(folder: Path, **given: Any) -> Iterator[PredictionHome]:
    home = PredictionHome(folder / "home", **given)
    try:
        yield home
    finally:
        home.database.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[PredictionHome]:
    """A home whose champion was evaluated, and nothing after it."""
    with home_in(tmp_path) as made:
        made.evaluate()
        yield made


def failed(verdict: Verdict) -> set[str]:
    return {metric.name for metric in verdict.metrics if metric.passed is False}


def test_steady_predictions_are_held_with_a_report_and_a_page_on_outcomes(home):
    home.add(8)
    verdict = home.look()
    assert (verdict.subject, verdict.decision) == (f"drift:{KEY}", Decision.HOLD)
    assert verdict.reasons[0].startswith("nothing found: 7 signals of ")
    assert (
        verdict.reasons[-1] == "outcomes: 600 of 600 predictions have one, half of them within 8 h"
    )
    names = {metric.name for metric in verdict.metrics}
    assert names >= {"feature.temp", "feature.wind", "feature.carrier", "prediction", *CONCEPT}
    assert names >= {"sla_missing.temp", "sla_f1", "sla_auc", "sla_brier", "sla_drifted_columns"}
    assert all(metric.passed for metric in verdict.metrics)
    evidence = verdict.evidence
    assert (evidence["version"], evidence["dataset_id"]) == (VERSION, "d" * 12)
    report = Path(evidence["report"])
    text = report.read_text()
    assert "feature.temp" in text
    assert f'<a href="outcomes-{report.name}">' in text
    outcomes = report.with_name(f"outcomes-{report.name}")
    assert "F1 score" in outcomes.read_text()
    assert outcomes.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (Made(warmer=2), {"feature.temp"}),
        (Made(united=0.8), {"feature.carrier"}),
        (Made(missing=0.3), {"missing.temp", "sla_missing.temp"}),
        (Made(flipped=True), {*CONCEPT, "sla_brier", "sla_auc", "sla_f1"}),
        (Made(failed=0.2), {"sla_failed"}),
    ],
    ids=["number", "label", "missing", "concept", "failures"],
)
def test_what_drifts_is_found_by_its_signal_and_by_no_other(home, made, found):
    home.add(9, made)
    verdict = home.look()
    assert verdict.decision is Decision.ALERT
    assert failed(verdict) == found
    assert {reason.partition(":")[0] for reason in verdict.reasons} >= found
    metrics = {metric.name: metric for metric in verdict.metrics}
    for name in found - {one for one in found if one.startswith("sla_")}:
        low, high = metrics[name].ci_low, metrics[name].ci_high
        assert low is not None
        assert high is not None
        assert low * high > 0
        assert verdict.evidence["scores"][name]["chance"] < verdict.evidence[LEVEL]


def test_predictions_without_an_outcome_yet_are_no_error(home):
    home.add(8, Made(known=0.0))
    verdict = home.look()
    assert verdict.decision is Decision.HOLD
    assert not CONCEPT & {m.name for m in verdict.metrics if m.passed is not None}
    assert any(one.startswith("concept_brier, concept_cal") for one in verdict.reasons)
    assert verdict.reasons[-1] == "outcomes: 0 of 600 predictions have one"
    assert "sla_f1: not judged: 0 values: too few" in verdict.reasons


def test_outcomes_that_come_later_are_judged_when_they_come(tmp_path):
    plan = DriftPlan(least_rows=200, hours=24 * 30)
    with home_in(tmp_path, plan=plan) as home:
        home.evaluate()
        home.add(8, Made(known=0.0, flipped=True))
        assert home.look().decision is Decision.HOLD
        assert "no outcome heard of since" in home.look().reasons[0]
        frame = home.predictions_there()
        late = home.moment + timedelta(hours=1)
        home.hear(
            [(name, p < 0.25, late) for name, p in zip(frame["request_id"], frame["probability"],
                                                      strict=True)]
        )  # fmt: skip
        home.moment += timedelta(hours=2)
        verdict = home.look()
    assert failed(verdict) >= CONCEPT
    assert verdict.evidence["outcomes"]["median_delay_seconds"] > 86_400


def test_outcomes_that_came_early_are_judged_once_their_predictions_are_old_enough(tmp_path):
    plan = DriftPlan(least_rows=200, hours=24 * 30)
    with home_in(tmp_path, plan=plan, predictions=Predictions(blocks=1)) as home:
        home.evaluate()
        home.moment += timedelta(hours=6)  # looks are in the middle of a block
        judged = []
        for _ in range(4):  # predictions of a day, known after 8 hours, old enough after 24
            home.add(1)
            metrics = {one.name: one for one in home.look().metrics}
            judged.append(metrics["sla_brier"].n if "sla_brier" in metrics else 0)
    assert judged[2:] == [100, 100]


def test_a_look_is_at_the_moment_of_its_begin(home):
    """What is heard of while it goes on is new to the next one."""
    asked = []

    def champion(_alias: str) -> str:
        asked.append(now())
        return VERSION

    verdict = look(replace(home.watch, moment=None, champion=champion), home.traffic)
    assert verdict.created_at <= asked[0]


def test_of_corrected_outcomes_the_last_word_counts_and_of_another_tenant_none(home):
    home.add(2, Made(known=0.0))
    name = home.predictions_there()["request_id"].iloc[0]
    for hours, value, tenant in ((1, True, "acme"), (2, False, "acme"), (3, True, "umbrella")):
        home.hear([(name, value, home.moment + timedelta(hours=hours))], tenant)
    frame = home.predictions_there()
    assert frame["label"].iloc[0] == 0.0
    assert frame["label"].notna().sum() == 1


def test_a_new_champion_is_compared_with_its_own_evaluation(home):
    home.add(8)
    assert home.look().evidence["version"] == VERSION
    first = find(home.folder, KEY)
    home.evaluate("flight-delay-next")
    home.champion = "flight-delay-next"
    home.add(8, adapter="flight-delay-next")
    verdict = home.look()
    second = find(home.folder, KEY)
    assert (first.version, second.version) == (VERSION, "flight-delay-next")
    assert verdict.evidence["version"] == "flight-delay-next"
    assert verdict.evidence["window_rows"] < 850  # none of the version before
    with home.database.session() as session:
        pins = session.scalars(select(AuditRow).where(AuditRow.action == "drift.pin")).all()
    assert [one.subject for one in pins] == [f"drift:{KEY}"] * 2
    assert pins[-1].reason == "its champion is flight-delay-next"


def test_without_an_evaluation_service_levels_alone_are_judged(tmp_path):
    with home_in(tmp_path) as home:
        home.add(3, Made(missing=0.3))
        verdict = home.look()
        assert (verdict.decision, verdict.baseline) == (Decision.ALERT, NONE)
        assert failed(verdict) == {"sla_missing.temp"}
        assert "pin one: llmops drift reference pin model:flight-delay" in verdict.reasons[1]
        home.evaluate("another")
        home.champion = "another"
        home.add(3, adapter="another")
        assert home.look().baseline != NONE
        home.champion = "never-evaluated"
        verdict = home.look()
    assert verdict.baseline == NONE
    assert "its reference is of another, its champion is never-evaluated" in verdict.reasons[0]


def test_an_evaluation_that_cannot_be_read_is_said(home):
    (home.folder / FOLDER / VERSIONS / VERSION / "rows.parquet").write_bytes(b"not parquet")
    home.add(3)
    verdict = home.look()
    assert (verdict.decision, verdict.baseline) == (Decision.HOLD, DAMAGED)
    assert "rows.parquet" in verdict.reasons[0] or "cannot be read" in verdict.reasons[0]


def test_too_few_days_take_nothing_of_the_budget(home):
    home.add(3)
    verdict = home.look()
    assert verdict.decision is Decision.HOLD
    assert verdict.evidence[LEVEL] == 0
    assert "blocks of time beside 14: too few at" in " ".join(verdict.reasons)


def test_a_models_own_limits_come_first(tmp_path):
    limits = Predictions(slas={"sla_brier": 0.01, "sla_f1": None})
    plan = DriftPlan(least_rows=200, slas={"sla_brier": 0.5, "sla_auc": None})
    with home_in(tmp_path, plan=plan, predictions=limits) as home:
        home.evaluate()
        home.add(8)
        verdict = home.look()
    assert failed(verdict) == {"sla_brier"}
    assert not {"sla_f1", "sla_auc"} & {metric.name for metric in verdict.metrics}
