"""Real flights through the whole pipeline: the first model answers, one that is no better is held,
and data that cannot be used is told and moves nothing."""

import json
from dataclasses import asdict

import pandas as pd
import pytest

from evals.records import Decision
from evals.verdicts import find_verdict, verdicts_on
from gateway.configuration import ConfigurationError
from gateway.errors import BadRequest
from gateway.feature_schema import Column
from gateway.lineage import Edge, Links, lineage
from gateway.tabular_model import load_model
from pipelines import lifecycle
from pipelines.champion import champion_name
from pipelines.datasets import record
from pipelines.dvc_process import StageFailed
from pipelines.flights import IDS
from pipelines.lineage_links import PipelineLinks
from pipelines.manifest import read_manifest, seal
from pipelines.runs import last_of_alias, newest
from pipelines.snapshot_links import SnapshotLinks
from pipelines.spec import load_spec
from pipelines.tables import DatasetRow
from tests.pipelines.tabular_home import NAME, SPEC, tabular_home

pytestmark = [
    pytest.mark.timeout(400),  # passes of seven processes each, beside whatever else runs
    pytest.mark.filterwarnings("ignore::UserWarning"),  # MLflow's, while it is imported
]


@pytest.fixture(scope="module")
def home(tmp_path_factory, backstage, mlflow_server):
    folder = tmp_path_factory.mktemp("tabular") / "home"
    with tabular_home(folder, backstage, mlflow_server) as made:
        yield made


@pytest.fixture(scope="module")
def first(home):
    """A first pass, through MLflow's own command."""
    home.mlflow_run()
    return home.last()


def champion(home):
    with home.open() as installation:
        return champion_name(installation.database, NAME)


def verdict_of(home, verdict_id):
    with home.open() as installation, installation.database.session() as session:
        return find_verdict(session, verdict_id)


def test_the_first_that_beats_the_base_rate_answers_at_once(home, first):
    verdict = verdict_of(home, first.verdict_id)
    assert verdict.decision is Decision.PROMOTE, verdict.reasons
    assert verdict.baseline == "base"
    assert {"auc", "brier", "worst_slice_auc", "leak_auc"} <= {one.name for one in verdict.metrics}
    assert first.version == "1"
    served = champion(home)
    assert served == verdict.subject
    assert served in home.server.versions
    model = load_model(home.folder / "tabular" / served)
    assert model.metadata["feature_service"] == "arrival_delay"
    assert model.metadata["dataset_id"] == first.dataset_id
    assert model.metadata["entities"] == ["carrier", "route", "origin"]
    assert model.metadata["request_columns"] == ["scheduled_departure", "distance"]
    assert not {"dep_delay", "arr_delay", "late", "carrier"} & set(model.columns)


def test_lineage_leads_to_the_snapshot_and_back(home, first):
    with home.open() as installation:
        database = installation.database
        links: list[Links] = [PipelineLinks(database), SnapshotLinks(database)]
        dataset = lineage(first.dataset_id, links)
        (snapshot,) = [one for one in dataset.nodes.values() if one.kind == "snapshot"]
        assert snapshot.details == {"source": "flights", "since": "2013-01-01",
                                    "until": "2013-02-15"}  # fmt: skip
        back = lineage(snapshot.id, links)
        assert Edge(f"dataset:{first.dataset_id}", "frozen from", snapshot.name) in back.edges
        assert f"training:{first.training_id}" in back.nodes
        assert [row.name for row in newest(database)] == [NAME]
        last = last_of_alias(database, NAME)
        assert last is not None and last.run_id == first.run_id
        assert last_of_alias(database, "other") is None


def test_the_same_by_our_own_command_trains_nothing_and_is_held(home, first):
    again = home.run()
    assert again.run_id != first.run_id
    assert (again.dataset_id, again.training_id) == (first.dataset_id, first.training_id)
    assert again.verdict.decision is Decision.HOLD
    assert again.verdict.baseline == again.verdict.subject == again.served_name
    assert "difference +0.000" in again.verdict.reasons[0]
    assert champion(home) == again.served_name


def test_what_is_known_only_after_departure_is_noticed(home, first, tmp_path):
    before, folder = champion(home), home.folder / "lifecycle" / NAME
    leaking = with_column(folder / "dataset", folder / "preprocessed", "dep_delay", tmp_path)
    spec = load_spec(home.spec())
    trained, measured, judged = (tmp_path / name for name in ("training", "results", "verdict"))
    with home.open() as installation:
        with installation.database.transaction() as session:
            record(session, read_manifest(leaking), leaking)
        for made in (trained, measured, judged):
            made.mkdir()
        lifecycle.fit(installation, spec, leaking, trained, silent)
        lifecycle.evaluate(installation, spec, leaking, trained, measured, silent)
        lifecycle.gate(installation, spec, measured, judged, silent)
    verdict = verdict_of(home, json.loads((judged / "verdict.json").read_text())["verdict_id"])
    assert verdict.decision is Decision.REJECT
    assert any("leak_auc" in one and "dep_delay" in one for one in verdict.reasons), verdict.reasons
    auc = next(one for one in verdict.metrics if one.name == "auc")
    assert auc.candidate > auc.baseline + 0.1  # it looks far better, and is not let through
    with home.open() as here, pytest.raises(BadRequest, match="is reject, so it is not registered"):
        lifecycle.register(here, spec, trained, judged, tmp_path, silent)
    assert champion(home) == before


def silent(_percent, _what):
    return


def with_column(dataset, tables, name, out):
    """A data set with a column of the raw events as one more feature."""
    events = pd.read_parquet(tables / "flights.parquet", columns=[IDS, name])
    old, new = read_manifest(dataset), out / "dataset"
    new.mkdir()
    for file in old.files:
        rows = pd.read_parquet(dataset / file).merge(events, on=IDS, how="left")
        rows.to_parquet(new / file, index=False)
    columns = {**old.about["columns"]}
    columns["columns"] = [*columns["columns"], asdict(Column(name, "float64", "feature"))]
    rows = {file: facts.rows for file, facts in old.files.items()}
    seal(new, old.name, rows, {**old.about, "columns": columns})
    return new


def test_data_that_cannot_be_used_is_told_and_the_champion_stays(home, first):
    before = champion(home)
    with pytest.raises(StageFailed, match="at least 1000000 and 1 are wanted"):
        home.run(dataset={"minimum": 1_000_000})
    with home.open() as installation, installation.database.session() as session:
        told = verdicts_on(session, f"data:{NAME}")
    assert [one.decision for one in told] == [Decision.ALERT]
    assert "rows to train on" in told[0].reasons[0]
    assert champion(home) == before


def test_a_column_in_another_unit_than_the_champion_learnt_is_named(home, first):
    before = champion(home)
    with home.open() as installation, installation.database.transaction() as session:
        row = session.get_one(DatasetRow, first.dataset_id)
        changed = json.loads(json.dumps(row.manifest))
        facts = changed["columns"]["facts"]["distance"]
        facts["quantiles"] = [1.609344 * miles for miles in facts["quantiles"]]
        row.manifest = changed
    with pytest.raises(StageFailed, match="column 'distance' is rescaled: miles to kilometres"):
        home.run(dataset={"until": "2013-02-14"})
    assert champion(home) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {"source": "trains"}}, "no source 'trains'"),
        ({"dataset": {"service": "departures"}}, "no feature service 'departures'"),
        ({"dataset": {"test_days": 400}}, "leaves none to train on"),
        ({"dataset": {"until": "2012-01-01"}}, "2012-01-01 is not after since, 2013-01-01"),
        ({"dataset": {"since": "0001-01-01"}}, "dataset.since"),
        ({"training": {"seed": 10**30}}, "exceeds 64-bit range"),
        ({"name": ".."}, "name: String should match"),
        ({"experiment": {"metric": "nope"}}, "experiment.metric: no metric 'nope' is declared"),
        ({"evaluation": {"slices": ["airport"]}}, "evaluation.slices: no column 'airport'"),
        ({"training": {"candidates": ["forest"]}}, "training.candidates.0"),
        ({"gate": SPEC["gate"][:1]}, "a condition on leak_auc is wanted"),
        ({"gate": [{"metric": "accuracy", "minimum_n": 1}]}, "no metric 'accuracy'"),
    ],
)
def test_a_mistake_in_a_spec_is_found_before_anything_is_done(home, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        home.run(**changes)
