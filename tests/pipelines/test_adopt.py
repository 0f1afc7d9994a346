"""A foreign scikit-learn script, with three lines more, lands in the registry and at the gate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.migrations import upgrade
from gateway.database import open_database
from pipelines.tables import ModelVersionRow, TrainingRow
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
SPOILT = "model = LogisticRegression().fit(rows[:2000], draw.permutation(labels[:2000]))"


@pytest.mark.timeout(300)
def test_a_foreign_script_and_three_lines(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    upgrade(f"sqlite:///{home / 'state.db'}")
    given = configuration("http://127.0.0.1:9/v1", mlflow={"tracking_uri": mlflow_server.url})
    (home / "gateway.yaml").write_text(yaml.safe_dump(given))
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
    again, bad = run(SCRIPT, LINES, SPOILT, LINES).splitlines()
    assert again == good.strip(), "it is the same version"
    assert bad.startswith("foreign-delay version 2 ") and ": promote" not in bad
    database = open_database(f"sqlite:///{home / 'state.db'}")
    with database.session() as session:
        trainings = session.query(TrainingRow).all()
        assert {one.configuration["origin"] for one in trainings} == {"foreign"}
        versions = session.query(ModelVersionRow).all()
        assert len(versions) == 2 and all((Path(one.path) / "MLmodel").exists() for one in versions)
        assert not list((home / "tabular").rglob("*.pkl"))
    database.close()
