"""The loop closes unattended: predictions drift, a look alerts, one training starts, the version
that came of it is champion and is watched. The training itself is a stand-in."""

import asyncio
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.clock import Clock
from deploy.schedule import Service
from evals.records import Decision, Verdict
from evals.reference import find
from evals.verdicts import verdicts_on
from gateway.settings import load_settings
from pipelines.champion import champion_of
from pipelines.spec import load_spec
from pipelines.trigger import events
from pipelines.trigger_outbox import SENT
from tests.deploy.tabular_stand_in import become_champion
from tests.evals.prediction_log import ALIAS, Made, PredictionHome

ROOT = Path(__file__).parents[2]
SUBJECT = f"drift:model:{ALIAS}"
PATIENCE = 120.0  # seconds


def configured(home: PredictionHome) -> None:
    """A gateway's file whose schedule looks every three seconds."""
    spec = home.folder / "flights.yaml"
    given = yaml.safe_load(load_spec(Path("extractor")).text())
    spec.write_text(yaml.safe_dump(given | {"name": ALIAS, "alias": ALIAS, "kind": "tabular"}))
    (home.folder / "gateway.yaml").write_text(
        yaml.safe_dump(
            {
                "upstreams": {"server": {"kind": "kserve", "url": "http://127.0.0.1:9/v2"}},
                "models": {ALIAS: {"upstream": "server"}},
                "drift": {"least_rows": 200, "hours": 720, "subjects": [{"model": ALIAS}]},
                "schedule": {"jobs": {"drift": {"every": "3s", "command": ["drift", "check"]}}},
                "triggers": {
                    "rules": [
                        {"name": "retrain", "when": {"subject": "drift:model:*",
                                                     "metric": "concept_*"},
                         "pipeline": str(spec)},
                    ]
                },
            }
        )
    )  # fmt: skip


def looks(home: PredictionHome) -> list[Verdict]:
    with home.database.session() as session:
        return verdicts_on(session, SUBJECT)


async def until(condition: Callable[[], Any], serving: "asyncio.Task[None]") -> None:
    for _ in range(int(PATIENCE / 0.2)):
        if condition():
            return
        assert not serving.done(), serving
        await asyncio.sleep(0.2)
    raise AssertionError("nothing came of it")


async def loop(home: PredictionHome) -> None:
    """Steady traffic is held; what made things late makes them punctual; then it is left alone."""
    environ = {**os.environ, "LLMOPS_HOME": str(home.folder), "PYTHONPATH": str(ROOT)}
    environ.pop("LLMOPS_CONFIG", None)
    stopped = asyncio.Event()
    serving = asyncio.create_task(
        Service(load_settings(environ), home.database, Clock()).serve(stopped)
    )
    try:
        await until(lambda: looks(home), serving)
        home.add(8, Made(flipped=True), adapter=home.champion)
        await until(lambda: champion(home) == "2", serving)
        await until(lambda: find(home.folder, SUBJECT[6:]).version != home.champion, serving)
        await until(lambda: looks(home)[-1].decision is Decision.HOLD, serving)
    finally:
        stopped.set()
        await serving


def champion(home: PredictionHome) -> str | None:
    with home.database.session() as session:
        return champion_of(session, ALIAS).version


@pytest.mark.timeout(400)
def test_a_drift_trains_one_version_that_is_then_watched(tmp_path, monkeypatch):
    stand_in = (sys.executable, "-m", "tests.deploy.tabular_stand_in")
    monkeypatch.setattr("deploy.jobs.LLMOPS", stand_in)
    monkeypatch.setattr("deploy.jobs.LOWEST", "0")  # the machine may have other work
    monkeypatch.chdir(ROOT)
    home = PredictionHome(tmp_path / "home")
    home.moment = datetime.now(UTC) - timedelta(days=14)
    home.champion = become_champion(home.database, home.folder, ALIAS, "1")
    configured(home)
    home.add(1, rows=250, adapter=home.champion)  # one day tells nothing, and takes no budget
    asyncio.run(loop(home))
    found = looks(home)
    assert found[0].decision is Decision.HOLD
    (alert,) = [one for one in found if one.decision is Decision.ALERT]
    assert {one.name for one in alert.metrics if one.passed is False} >= {"concept_auc"}
    (event,) = events(home.database)
    assert (event.state, event.verdict_id) == (SENT, alert.verdict_id)
    assert event.answer == f"started: llmops train tabular {home.folder / 'flights.yaml'}"
    assert "concept_" in event.reason
    assert found[-1].baseline == find(home.folder, SUBJECT[6:]).name
    home.database.close()
