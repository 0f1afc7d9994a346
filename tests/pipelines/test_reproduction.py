"""A former run done again, by code that has gone on since."""

import subprocess
from pathlib import Path

import pytest
from sqlalchemy import select

from pipelines.tables import ModelVersionRow, RunRow, TrainingRow
from tests.gateway_process import ROOT
from tests.pipelines.test_passes import runs
from tests.pipelines.train_home import TrainHome

pytestmark = pytest.mark.timeout(400)  # with what is made once: MLflow, a whole pass


@pytest.mark.slow
def test_a_run_two_commits_old_comes_out_the_same(copied, tmp_path):
    code = two_commits_on(copied, tmp_path / "code")
    with copied.open() as installation, installation.database.session() as session:
        (version,) = session.scalars(select(ModelVersionRow))
    copied.engine.adapters[version.served_name] = version.path  # it answers with it still
    done = reproduced(copied, code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same within 1e-06: to the last bit" in done.stdout
    assert "exact_match/candidate" in done.stdout

    with copied.open() as installation, installation.database.transaction() as session:
        (training,) = session.scalars(select(TrainingRow))
        training.metrics = {**training.metrics, "last_loss": 9.0}
        training.configuration = {**training.configuration, "packages": {"numpy": "1.0"}}
    again = reproduced(copied, code)
    assert again.returncode == 1
    assert "1 figures differ" in again.stdout and "package numpy: " in again.stdout


def two_commits_on(home: TrainHome, code: Path) -> Path:
    """A clone that has gone on by two commits since the home's run, and cannot train any more."""
    git = ("git", "-C", str(code), "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(code)], check=True)
    told = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    for number, broken in enumerate(("rlhf/finetune.py", "pipelines/llm.py")):
        with (code / broken).open("a") as file:
            file.write(f"\n\ndef fit(*_):\n    raise RuntimeError('commit {number}')\n")
        subprocess.run([*git, "commit", "-qam", f"{number}"], check=True)
    with home.open() as installation, installation.database.transaction() as session:
        for run in session.scalars(select(RunRow)):
            run.git_sha = told.stdout.strip()
    return code


def reproduced(home: TrainHome, code: Path) -> subprocess.CompletedProcess[str]:
    """`llmops reproduce` by the code in `code`."""
    return subprocess.run(
        home.command("reproduce", runs(home)[0].run_id),
        cwd=home.folder,
        env={**home.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        timeout=250,
    )
