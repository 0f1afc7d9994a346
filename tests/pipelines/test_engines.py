"""Which adapters an engine is to keep: also one whose every candidate was refused is tidied up."""

from pathlib import Path

import yaml

from deploy.migrations import upgrade
from gateway.database import now
from gateway.settings import load_settings
from pipelines.engines import model_names, wanted_adapters
from pipelines.installation import open_installation
from pipelines.rollout import Replicas
from pipelines.tables import DatasetRow, RunRow, TrainingRow
from tests.gateway_process import configuration
from tests.pipelines.lifecycle import ALIAS, adapter_name
from tests.pipelines.scripted_engine import ScriptedEngine


async def test_a_candidate_of_a_model_without_any_version_is_unloaded(tmp_path: Path) -> None:
    settings = load_settings({"LLMOPS_HOME": str(tmp_path)})
    upgrade(settings.database_url)
    async with ScriptedEngine() as engine:
        given = configuration(engine.url, models={ALIAS: {"upstream": "up", "model": "base-model"}})
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(given))
        with open_installation(settings) as installation:
            assert wanted_adapters(installation) == {} and model_names(installation) == ()
            with installation.database.transaction() as session:
                session.add(DatasetRow(dataset_id="d", name=ALIAS, manifest={}, created_at=now()))
                session.flush()
                session.add(
                    TrainingRow(
                        training_id="t", name=ALIAS, kind="llm", dataset_id="d", base_model="b",
                        base_digest="b", served_name=adapter_name("1"), digest="a",
                        path="/x", configuration={}, metrics={}, created_at=now(),
                    )
                )  # fmt: skip
                session.add(
                    RunRow(
                        run_id="r", name=ALIAS, state="finished", stage="evaluate",
                        spec={"alias": ALIAS}, started_at=now(),
                    )
                )  # fmt: skip
            ((wanted_by, wanted),) = wanted_adapters(installation).items()
            names = model_names(installation)
        assert (wanted_by.urls, wanted, names) == ((engine.url,), {}, (ALIAS,))
        replicas = Replicas(wanted_by.urls, prefixes=names, grace_seconds=0)
        for adapter in (adapter_name("1"), "by-hand"):
            await replicas.load(adapter, Path("/adapters") / adapter)
        (state,) = await replicas.reconcile(wanted)
        assert state.unloaded == (adapter_name("1"),)
        assert set(engine.adapters) == {"by-hand"}
