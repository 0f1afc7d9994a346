"""The lineage check and MLflow: what it should know of a version, and what it is told of moves."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.database import now
from pipelines.mlflow_api import MLflowAPI
from pipelines.promotion import follow_up
from pipelines.registry import Registry
from pipelines.tables import ModelVersionRow
from rlhf.adapter import WEIGHTS, inspect, served_name
from tests.pipelines.lifecycle_rows import BASE_DIGEST, Chain, write_adapter, write_chain
from tests.pipelines.lineage_damage import checked, edit, told
from tests.pipelines.mlflow_server import MLflowServer

Damage = Callable[[Chain, MLflowServer], str]


@pytest.fixture
def chain(
    mlflow_server: MLflowServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Chain]:
    """A chain of a name of its own: MLflow cannot be copied."""
    name = "of-" + "".join(one if one.isalnum() else "-" for one in request.node.name)[-60:]
    written = write_chain(tmp_path, name=name, tracking_uri=mlflow_server.url)
    yield written
    written.database.close()


def _run_deleted(chain: Chain, server: MLflowServer) -> str:
    MLflowAPI(server.url).post("runs/delete", {"run_id": chain.training_id})
    return (
        f"MLflow run {chain.training_id}: the run was deleted in MLflow; restore it: "
        f"mlflow runs restore --run-id {chain.training_id}"
    )


def _run_unfinished(chain: Chain, server: MLflowServer) -> str:
    MLflowAPI(server.url).post("runs/update", {"run_id": chain.training_id, "status": "RUNNING"})
    return f"MLflow run {chain.training_id}: it is RUNNING there"


def _run_of_other_data(chain: Chain, server: MLflowServer) -> str:
    tag = {"run_id": chain.training_id, "key": "dataset_id", "value": "f" * 32}
    MLflowAPI(server.url).post("runs/set-tag", tag)
    return f"dataset_id is {'f' * 32} there, {chain.dataset_id} here"


def _never_in_mlflow(chain: Chain, server: MLflowServer) -> str:
    for table in ("training", "model_version", "run"):
        edit(chain, f"UPDATE {table} SET training_id = ?", "f" * 32)
    return f"training {'f' * 32} → MLflow run {'f' * 32}: MLflow has no such run"


def _artifact_gone(chain: Chain, server: MLflowServer) -> str:
    shutil.rmtree(_artifact(chain, server))
    return "its artifact 'model' has no adapter_config.json, adapter_model.safetensors, llmops"


def _weights_gone(chain: Chain, server: MLflowServer) -> str:
    (_artifact(chain, server) / WEIGHTS).unlink()
    return f"its artifact 'model' has no {WEIGHTS}; upload it again: mlflow artifacts log-artifacts"


def _artifact(chain: Chain, server: MLflowServer) -> Path:
    (found,) = (server.folder / "artifacts").rglob(f"{chain.training_id}/artifacts/model")
    return found


def _version_gone(chain: Chain, server: MLflowServer) -> str:
    version = {"name": chain.name, "version": chain.version}
    MLflowAPI(server.url).delete("model-versions/delete", version)
    return f"{chain.name}/1 → MLflow version 1: MLflow's registry has no such version"


def _model_gone(chain: Chain, server: MLflowServer) -> str:
    MLflowAPI(server.url).delete("registered-models/delete", {"name": chain.name})
    return f"{chain.name}/1 → MLflow version 1: MLflow's registry has no such version"


def _alias_taken_away(chain: Chain, server: MLflowServer) -> str:
    Registry(server.url).set_alias(chain.name, "champion", None)
    return "champion is missing there, 1 here; somebody moved them"


def _alias_set(chain: Chain, server: MLflowServer) -> str:
    Registry(server.url).set_alias(chain.name, "previous", "1")
    return "previous is 1 there, none here; somebody moved them"


def _unknown_version(chain: Chain, server: MLflowServer) -> str:
    """Somebody registered one past the gate."""
    tags: dict[str, str | None] = {"digest": "e" * 64}
    registry = Registry(server.url)
    assert registry.register(chain.name, chain.training_id, chain.adapter_path, tags) == "2"
    return f"registry → model_version {chain.name}/2: named by a promotion, an experiment, a run or"


DAMAGES: list[Damage] = [
    _run_deleted, _run_unfinished, _run_of_other_data, _never_in_mlflow, _artifact_gone,
    _weights_gone, _version_gone, _model_gone, _alias_taken_away, _alias_set, _unknown_version,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_what_mlflow_lost_is_named(
    chain: Chain, mlflow_server: MLflowServer, damage: Damage
) -> None:
    assert checked(chain, mlflow_server.url).whole
    expected = damage(chain, mlflow_server)
    assert expected in told(checked(chain, mlflow_server.url))


def test_every_tag_of_a_version_is_compared(chain: Chain, mlflow_server: MLflowServer) -> None:
    api = MLflowAPI(mlflow_server.url)
    version = Registry(mlflow_server.url).version(chain.name, chain.version)
    assert version is not None
    compared = dict(version.tags)
    assert compared.pop("path")  # a place, not a link
    assert len(compared) == 7
    for name, value in compared.items():
        tag = {"name": chain.name, "version": chain.version, "key": name}
        api.post("model-versions/set-tag", {**tag, "value": "9" * 12})
        broken = told(checked(chain, mlflow_server.url))
        assert f"MLflow version 1: {name} is 999999999999 there, {value} here" in broken
        api.post("model-versions/set-tag", {**tag, "value": value})
    assert checked(chain, mlflow_server.url).whole


def test_an_mlflow_that_hangs_is_one_broken_link(chain: Chain, mlflow_server: MLflowServer) -> None:
    with mlflow_server.frozen():
        report = checked(chain, mlflow_server.url)
    (link,) = report.broken
    assert (link.of, link.to) == ("registry", "MLflow")
    assert "does not answer within 4 s" in link.found


def test_aliases_that_are_still_to_be_told(chain: Chain, mlflow_server: MLflowServer) -> None:
    Registry(mlflow_server.url).set_alias(chain.name, "champion", None)
    edit(chain, "UPDATE promotion SET state = 'moving'")
    assert "the controller is still to tell MLflow" in told(checked(chain, mlflow_server.url))
    follow_up(chain.database, Registry(mlflow_server.url))
    assert checked(chain, mlflow_server.url).whole


def test_a_drills_adapter_is_made_from_the_trainings(
    chain: Chain, mlflow_server: MLflowServer
) -> None:
    version, adapter = _drill(chain, mlflow_server.url)
    report = checked(chain, mlflow_server.url)
    assert report.whole, told(report)
    assert report.versions == (f"{chain.name}/1", f"{chain.name}/2")
    (link,) = [one for one in report.links if one.of.endswith("/2") and one.to == "verdict"]
    assert link.found == "registered unjudged"
    weights = chain.home / "adapters" / adapter / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    expected = f"model_version {chain.name}/{version} → adapter {adapter}"
    assert expected in told(checked(chain, mlflow_server.url))


def _drill(chain: Chain, tracking_uri: str) -> tuple[str, str]:
    """Register another adapter of the same training, as a drill does; its version and name."""
    fresh = chain.home / "adapters" / ".fresh"
    write_adapter(fresh, seed=2)
    info = inspect(fresh)
    adapter = served_name(chain.name, info)
    path = fresh.rename(fresh.with_name(adapter))
    tags: dict[str, str | None] = {
        "kind": "llm",
        "served_name": adapter,
        "digest": info.digest,
        "base_digest": BASE_DIGEST,
        "dataset_id": chain.dataset_id,
    }
    version = Registry(tracking_uri).register(chain.name, chain.training_id, path, tags)
    with chain.database.transaction() as session:
        session.add(
            ModelVersionRow(
                name=chain.name,
                version=version,
                training_id=chain.training_id,
                served_name=adapter,
                path=str(path),
                created_at=now(),
            )
        )
    return version, adapter
