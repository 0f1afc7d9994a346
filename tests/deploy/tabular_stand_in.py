"""`llmops` with a stand-in for the training of a tabular model, as a program.

It does at the end of a run what the lifecycle does: the version's evaluation is kept, its rows are
written, and it becomes champion. Every other command is the real one.
"""

import sys
from pathlib import Path

import numpy as np

from deploy.cli import main
from evals.prediction_reference import keep_predictions
from gateway.database import Database, now, open_database
from gateway.settings import load_settings
from pipelines.champion import PROMOTE, Move, champion_of, hold, move_champion
from pipelines.spec import load_spec
from pipelines.tables import DatasetRow, ModelVersionRow, TrainingRow
from tests.evals.prediction_log import evaluated


def become_champion(database: Database, home: Path, name: str, version: str) -> str:
    """A version that was trained, evaluated and promoted; its served name."""
    served = f"{name}-{int(version):012x}"
    keep_predictions(home, served, evaluated(np.random.default_rng(int(version)), 14, 150))
    identifier, path = f"{int(version):032x}", str(home / "tabular" / served)
    with database.transaction() as session:
        hold(session)
        session.add(DatasetRow(dataset_id=identifier, name=name, manifest={}, created_at=now()))
        session.flush()
        session.add(
            TrainingRow(
                training_id=identifier, name=name, kind="tabular", dataset_id=identifier,
                base_model="", base_digest="", served_name=served, digest="d" * 64, path=path,
                configuration={}, metrics={}, created_at=now(),
            )
        )  # fmt: skip
        session.flush()
        session.add(
            ModelVersionRow(
                name=name, version=version, training_id=identifier, served_name=served, path=path,
                created_at=now(),
            )
        )  # fmt: skip
        session.flush()
        move_champion(session, Move(PROMOTE, name, name, version, "a test", "it is better"))
    return served


def train(spec: Path) -> None:
    """The next version of what the spec names."""
    settings = load_settings()
    database = open_database(settings.database_url)
    name = load_spec(spec).name
    with database.session() as session:
        before = champion_of(session, name).version
    become_champion(database, settings.home, name, str(int(before or 0) + 1))
    database.close()


if __name__ == "__main__":
    if sys.argv[1:3] == ["train", "tabular"]:
        train(Path(sys.argv[3]))
    else:
        main()
