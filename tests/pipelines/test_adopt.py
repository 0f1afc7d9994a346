"""A foreign scikit-learn script, with three lines more, lands in the registry and at the gate."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LogisticRegression

from deploy.migrations import upgrade
from evals.verdicts import VerdictRow
from gateway.database import open_database
from gateway.tabular_model import ModelUnusable
from pipelines.adopt import Later, adopt
from pipelines.manifest import read_manifest, verify
from pipelines.tables import DatasetRow, ModelVersionRow, TrainingRow
from pipelines.tabular_rows import BadData
from pipelines.tracking import Tracking, TrackingUnavailable
from tests.gateway_process import ROOT, configuration
from tests.pipelines.mlflow_server import MLflowServer

SCRIPT = """
import numpy, pandas
from sklearn.linear_model import LogisticRegression

draw = numpy.random.default_rng(1)
rows = pandas.DataFrame({"wind": draw.normal(size=4000), "hour": draw.uniform(5, 23, 4000)})
odds = 1.5 * rows["wind"] + 0.1 * rows["hour"] - 1.4
labels = (odds + draw.logistic(size=4000) > 0).astype(int)
days = pandas.Timestamp("2013-06-01") + pandas.to_timedelta(numpy.arange(4000) // 80, unit="D")
model = LogisticRegression().fit(rows[:2000], labels[:2000])
"""
LINES = """
from pipelines.adopt import adopt

print(adopt(model, "foreign-delay", rows[2000:], labels[2000:], days[2000:]))
"""
FEWER = LINES.replace("2000:", "2100:")
SPOILT = "model = LogisticRegression().fit(rows[:2000], draw.permutation(labels[:2000]))"


class OwnRegression(LogisticRegression):  # type: ignore[misc]  # scikit-learn is not typed
    """Its code is this file's."""


def home_in(folder: Path, mlflow: str) -> Path:
    home = folder / "home"
    home.mkdir()
    upgrade(f"sqlite:///{home / 'state.db'}")
    given = configuration("http://127.0.0.1:9/v1", mlflow={"tracking_uri": mlflow})
    (home / "gateway.yaml").write_text(yaml.safe_dump(given))
    return home


@pytest.mark.timeout(300)
def test_a_foreign_script_and_three_lines(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    home = home_in(tmp_path, mlflow_server.url)
    environ = {**os.environ, "LLMOPS_HOME": str(home), "PYTHONPATH": str(ROOT)}

    def run(*parts: str) -> str:
        command = [sys.executable, "-c", "".join(parts)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    good = run(SCRIPT, LINES)
    assert good.startswith("foreign-delay version 1 (foreign-delay-") and "): promote: " in good
    again, bad = run(SCRIPT, LINES, SPOILT, FEWER).splitlines()
    assert again == good.strip(), "it is the same version"
    assert bad.startswith("foreign-delay version 2 ") and ": promote" not in bad
    database = open_database(f"sqlite:///{home / 'state.db'}")
    with database.session() as session:
        trainings = session.query(TrainingRow).all()
        assert {one.configuration["origin"] for one in trainings} == {"foreign"}
        versions = session.query(ModelVersionRow).all()
        assert len(versions) == 2 and all((Path(one.path) / "MLmodel").exists() for one in versions)
        sets = [one.dataset_id for one in session.query(DatasetRow)]
        folders = [home / "lifecycle" / "foreign-delay" / "adopted" / one for one in sets]
        assert [read_manifest(one).dataset_id for one in folders] == sets and len(sets) == 2
        for folder in folders:
            verify(folder, read_manifest(folder))
        assert not list((home / "tabular").rglob("*.pkl"))
    database.close()


def foreign(rows: int = 600) -> tuple[LogisticRegression, pd.DataFrame, Any, Any]:
    """A fitted model, and rows, labels and days for it."""
    draw = np.random.default_rng(1)
    table = pd.DataFrame({"wind": draw.normal(size=rows), "hour": draw.uniform(5, 23, rows)})
    labels = (table["wind"] + draw.logistic(size=rows) > 0).astype(int)
    days = pd.Timestamp("2013-06-01") + pd.to_timedelta(np.arange(rows) // 30, unit="D")
    return LogisticRegression().fit(table, labels), table, labels, days


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.assign(day=1), "have a column 'day'"),
        (lambda rows: rows.assign(label=1), "have a column 'label'"),
        (lambda rows: rows.rename(columns={"wind": "gust"}), "do not fit: The feature names"),
        (lambda rows: rows.assign(wind="strong"), "do not fit: could not convert"),
    ],
    ids=["day", "label", "another column", "text"],
)
def test_rows_that_do_not_fit_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMOPS_HOME", str(home_in(tmp_path, "http://127.0.0.1:9")))
    model, rows, labels, days = foreign()
    with pytest.raises(BadData, match=said):
        adopt(model, "foreign-delay", change(rows), labels, days)
    assert not list((tmp_path / "home").glob("tabular/*"))
    assert not list((tmp_path / "home").glob("tabular/.*"))


def test_labels_and_days_that_are_none_are_refused() -> None:
    _, rows, labels, days = foreign(60)
    for wrong in ((["late"] * 60, days), (labels, ["soon"] * 60)):
        with pytest.raises(BadData, match="labels are 0 or 1, days are dates"):
            Later.of(rows, *wrong)


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_code_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOPS_HOME", str(home_in(tmp_path, "http://127.0.0.1:9")))
    _, rows, labels, days = foreign()
    with pytest.raises(ModelUnusable, match=r"a OwnRegression is not kept: .*untrusted types"):
        adopt(OwnRegression().fit(rows, labels), "foreign-delay", rows, labels, days)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_a_verdict_that_mlflow_did_not_hear_of_is_not_kept(
    mlflow_server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_in(tmp_path, mlflow_server.url)
    monkeypatch.setenv("LLMOPS_HOME", str(home))

    def away(*_: Any) -> None:
        raise TrackingUnavailable("MLflow is away")

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "verdict", away)
        with pytest.raises(TrackingUnavailable):
            adopt(foreign()[0], "heard-of", *foreign()[1:])
    adopted = adopt(foreign()[0], "heard-of", *foreign()[1:])
    database = open_database(f"sqlite:///{home / 'state.db'}")
    with database.session() as session:
        kept = [one.verdict_id for one in session.query(VerdictRow)]
    database.close()
    assert kept == [adopted.verdict.verdict_id]
