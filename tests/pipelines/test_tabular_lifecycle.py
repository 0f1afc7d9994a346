"""Real flights through the whole pipeline: the first model answers, one that is no better is held,
and data that cannot be used is told and moves nothing."""

import pytest

from evals.records import Decision
from evals.verdicts import verdicts_on
from gateway.configuration import ConfigurationError
from gateway.tabular_model import load_model
from pipelines.champion import champion_name
from pipelines.dvc_process import StageFailed
from tests.pipelines.tabular_home import NAME, SPEC, tabular_home

pytestmark = pytest.mark.timeout(400)  # passes of seven processes each, beside whatever else runs


@pytest.fixture(scope="module")
def home(tmp_path_factory, backstage, mlflow_server):
    folder = tmp_path_factory.mktemp("tabular") / "home"
    with tabular_home(folder, backstage, mlflow_server) as made:
        made.first = made.run()
        yield made


def champion(home):
    with home.open() as installation:
        return champion_name(installation.database, NAME)


def test_the_first_that_beats_the_base_rate_answers_at_once(home):
    verdict = home.first.verdict
    assert verdict.decision is Decision.PROMOTE, verdict.reasons
    assert verdict.baseline == "base"
    assert {"auc", "brier", "worst_slice_auc", "leak_auc"} <= {one.name for one in verdict.metrics}
    assert home.first.version == "1"
    served = champion(home)
    assert served == verdict.subject
    assert served in home.server.versions
    model = load_model(home.folder / "tabular" / served)
    assert model.metadata["feature_service"] == "arrival_delay"
    assert model.metadata["dataset_id"] == home.first.dataset_id
    assert model.metadata["entities"] == ["carrier", "route", "origin"]
    assert model.metadata["request_columns"] == ["scheduled_departure", "distance"]
    assert not {"dep_delay", "arr_delay", "late", "carrier"} & set(model.columns)


def test_the_same_again_is_held_and_trains_nothing(home):
    again = home.run()
    assert again.training_id == home.first.training_id
    assert again.verdict.decision is Decision.HOLD
    assert again.verdict.baseline == home.first.verdict.subject
    assert "difference +0.000" in again.verdict.reasons[0]
    assert champion(home) == home.first.verdict.subject


def test_data_that_cannot_be_used_is_told_and_the_champion_stays(home):
    before = champion(home)
    with pytest.raises(StageFailed, match="at least 1000000 and 1 are wanted"):
        home.run(dataset={"minimum": 1_000_000})
    with home.open() as installation, installation.database.session() as session:
        told = verdicts_on(session, f"data:{NAME}")
    assert [one.decision for one in told] == [Decision.ALERT]
    assert "rows to train on" in told[0].reasons[0]
    assert champion(home) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {"source": "trains"}}, "no source 'trains'"),
        ({"dataset": {"service": "departures"}}, "no feature service 'departures'"),
        ({"dataset": {"test_days": 400}}, "leaves none to train on"),
        ({"evaluation": {"slices": ["airport"]}}, "evaluation.slices: no column 'airport'"),
        ({"training": {"candidates": ["forest"]}}, "training.candidates.0"),
        ({"gate": SPEC["gate"][:1]}, "a condition on leak_auc is wanted"),
        ({"gate": [{"metric": "accuracy", "minimum_n": 1}]}, "no metric 'accuracy'"),
    ],
)
def test_a_mistake_in_a_spec_is_found_before_anything_is_done(home, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        home.run(**changes)
