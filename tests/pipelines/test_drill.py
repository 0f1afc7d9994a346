"""Candidates that are known to be bad: they load, answer badly, and get no traffic unasked."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from gateway.database import Conflict
from gateway.errors import NotFound
from pipelines.candidate import require_candidate
from pipelines.champion import find_version
from pipelines.drill import register_ruined
from pipelines.engines import services_for
from pipelines.experiment import Trial, start
from pipelines.installation import Installation
from pipelines.promotion import Promotion, promote
from pipelines.registry import Registry, RegistryUnavailable
from pipelines.tables import ModelVersionRow
from rlhf.adapter import base_digest, inspect, require_fit, served_name
from tests.pipelines.train_home import NAME, TrainHome

REASON = "to see it go"
pytestmark = pytest.mark.timeout(400)  # with what is made once: MLflow, a whole pass


def versions(installation: Installation) -> list[ModelVersionRow]:
    """Oldest first."""
    with installation.database.session() as session:
        found = session.scalars(select(ModelVersionRow))
        return sorted(found, key=lambda row: row.created_at)


def test_a_ruined_copy_is_another_adapter_that_the_engine_takes(copied: TrainHome):
    with copied.open() as installation:
        (good,) = versions(installation)
        made, served = register_ruined(installation, copied.spec(), good.version, REASON)
        with installation.database.session() as session:
            row = find_version(session, NAME, made)
        assert row is not None and row.training_id == good.training_id
        assert (row.verdict_id, row.served_name) == (None, served)
        folder = Path(row.path)
        base = base_digest(installation.model_folder("tiny"))
        info = require_fit(folder, base, installation.lora_rank)
        known = Registry(installation.tracking_uri()).version(NAME, made)
    whole = inspect(copied.folder / "adapters" / good.served_name)
    assert served == served_name(NAME, info) != good.served_name
    assert info.digest != whole.digest and "drill" in info.note
    assert (info.rank, info.target_modules) == (whole.rank, whole.target_modules)
    assert known is not None and "verdict_id" not in known.tags
    assert known.tags["digest"] == info.digest
    assert known.description.endswith(f": a spoilt copy of version {good.version}")


@pytest.mark.parametrize("unjudged", [None, "", "  "])
def test_it_gets_no_traffic_without_a_reason(copied: TrainHome, unjudged: str | None):
    with copied.open() as installation:
        (good,) = versions(installation)
        made, served = register_ruined(installation, copied.spec(), good.version, REASON)
        services = services_for(installation, NAME)
        plan = copied.spec().experiment.settled(installation.configuration.feedback.metrics)
        order = Promotion(NAME, NAME, made, "ann", "it shines", unjudged)
        with pytest.raises(Conflict, match="no verdict on it; evaluate it, or say why"):
            asyncio.run(promote(services, order))
        with pytest.raises(Conflict, match="no verdict on it"):
            asyncio.run(start(services, Trial(NAME, NAME, made, plan, "ann", unjudged)))
        assert copied.engine.loads() == []
        asyncio.run(start(services, Trial(NAME, NAME, made, plan, "ann", "a drill")))
        assert list(copied.engine.adapters) == [served]
        with installation.database.session() as session:
            require_candidate(session, NAME, made, "a drill")


def test_twice_is_the_same_version_also_after_a_kill(copied: TrainHome):
    with copied.open() as installation:
        (good,) = versions(installation)
        left = installation.adapters_dir / f".{good.served_name}.ruined"
        left.mkdir()
        (left / "adapter_config.json").write_text("{")
        first = register_ruined(installation, copied.spec(), good.version, REASON)
        stamp = (installation.adapters_dir / first[1]).stat().st_mtime_ns
        assert register_ruined(installation, copied.spec(), good.version, "again") == first
        assert [row.version for row in versions(installation)] == [good.version, first[0]]
        assert (installation.adapters_dir / first[1]).stat().st_mtime_ns == stamp
        folders = {path.name for path in installation.adapters_dir.iterdir()}
        assert folders == {good.served_name, first[1]}


def test_without_mlflow_or_a_version_nothing_is_registered(copied: TrainHome):
    with copied.open() as installation:
        (good,) = versions(installation)
        with pytest.raises(NotFound, match="cities has no version '99'"):
            register_ruined(installation, copied.spec(), "99", REASON)
        copied.shut()
        with pytest.raises(RegistryUnavailable, match="the model registry is away"):
            register_ruined(installation, copied.spec(), good.version, REASON)
        assert len(versions(installation)) == 1
        copied.reopen()
        register_ruined(installation, copied.spec(), good.version, REASON)
        assert len(versions(installation)) == 2
