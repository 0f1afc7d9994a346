"""The model registry against a real MLflow server, and against none."""

import threading
import time
from pathlib import Path

import pytest

from pipelines.mlflow_api import MLflowAPI, MLflowRefused
from pipelines.registry import Registry, RegistryRefused, RegistryUnavailable
from pipelines.tracking import Tracking
from tests.gateway_process import free_port
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.silent_server import silent_server

PATIENCE = 5.0
TAGS = {
    "served_name": "extractor-3f2a90c1d4e5",
    "digest": "3f2a90c1d4e5" + "0" * 52,
    "base_digest": "ab" * 32,
    "dataset_id": "d" * 32,
    "verdict_id": "v-1",
    "run_id": "r-1",
    "git_sha": None,
}


@pytest.fixture
def registry(mlflow_server: MLflowServer) -> Registry:
    return Registry(mlflow_server.url)


@pytest.fixture
def training(mlflow_server: MLflowServer, tmp_path: Path) -> str:
    """A finished training with an adapter."""
    return _trained(mlflow_server, tmp_path)


def _trained(mlflow_server: MLflowServer, folder: Path, *, adapter: bool = True) -> str:
    tracking = Tracking(mlflow_server.url)
    files = folder / "adapter"
    files.mkdir()
    (files / "adapter_config.json").write_text("{}")
    with tracking.start("reg", tags={}, params={}, journal=folder / "metrics.jsonl") as run:
        if adapter:
            run.artifacts(files)
    return run.training_id


def test_a_version_has_its_tags_and_its_source(registry, training, tmp_path):
    version = registry.register("reg-tags", training, tmp_path / "adapter", TAGS, "78 % right")
    found = registry.version("reg-tags", version)
    assert version == "1"
    assert found.training_id == training
    assert found.source.endswith(f"{training}/artifacts/model")
    assert found.description == "78 % right"
    assert found.tags == {
        **{key: value for key, value in TAGS.items() if value is not None},
        "training_id": training,
        "path": str(tmp_path / "adapter"),
    }


def test_mlflows_own_client_reads_what_was_written(registry, training, tmp_path, mlflow_server):
    client = pytest.importorskip("mlflow").MlflowClient(mlflow_server.url)
    version = registry.register("reg-own", training, tmp_path / "adapter", TAGS)
    registry.set_alias("reg-own", "champion", version)
    found = client.get_model_version_by_alias("reg-own", "champion")
    assert (found.version, found.run_id) == (version, training)
    assert found.tags["served_name"] == TAGS["served_name"]
    assert client.get_model_version_download_uri("reg-own", version) == found.source


def test_again_is_the_same_version(registry, training, tmp_path):
    first = registry.register("reg-again", training, tmp_path, TAGS)
    again = registry.register("reg-again", training, tmp_path, {**TAGS, "verdict_id": "v-2"})
    other = registry.register("reg-again", training, tmp_path, {**TAGS, "digest": "f" * 64})
    assert (first, again, other) == ("1", "1", "2")
    assert registry.version("reg-again", "1").tags["verdict_id"] == "v-1"


def test_four_at_once_agree_on_one_version(registry, training, tmp_path, mlflow_server):
    found: list[str] = []
    ready = threading.Barrier(4)

    def register() -> None:
        ready.wait()
        found.append(registry.register("reg-race", training, tmp_path, TAGS))

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    left = MLflowAPI(mlflow_server.url).get("model-versions/search", filter="name = 'reg-race'")
    assert [one["version"] for one in left["model_versions"]] == [found[0]]


def test_aliases_move_and_go(registry, training, tmp_path):
    assert registry.aliases("reg-alias") == {}
    registry.set_alias("reg-alias", "champion", None)  # nothing is there: nothing to take away
    one = registry.register("reg-alias", training, tmp_path, TAGS)
    two = registry.register("reg-alias", training, tmp_path, {**TAGS, "digest": "e" * 64})
    registry.set_alias("reg-alias", "champion", one)
    registry.set_alias("reg-alias", "challenger", two)
    assert registry.aliases("reg-alias") == {"champion": one, "challenger": two}
    registry.set_alias("reg-alias", "champion", two)
    registry.set_alias("reg-alias", "previous", one)
    registry.set_alias("reg-alias", "challenger", None)
    registry.set_alias("reg-alias", "challenger", None)
    assert registry.aliases("reg-alias") == {"champion": two, "previous": one}


def test_what_is_not_there_is_said(registry, training, tmp_path, mlflow_server):
    registry.register("reg-missing", training, tmp_path, TAGS)
    assert registry.version("reg-missing", "99") is None
    assert registry.version("reg-nobody", "1") is None
    with pytest.raises(RegistryRefused, match="version=99"):
        registry.set_alias("reg-missing", "champion", "99")
    with pytest.raises(RegistryRefused, match="no run 0123456789abcdef"):
        registry.register("reg-missing", "0123456789abcdef" * 2, tmp_path, TAGS)
    with pytest.raises(RegistryRefused, match="digest"):
        registry.register("reg-missing", training, tmp_path, {"served_name": "x"})
    bare = _trained(mlflow_server, _folder(tmp_path / "bare"), adapter=False)
    with pytest.raises(RegistryRefused, match="no artifact 'model'"):
        registry.register("reg-missing", bare, tmp_path, TAGS)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry: registry.aliases("m"),
        lambda registry: registry.version("m", "1"),
        lambda registry: registry.set_alias("m", "champion", "1"),
        lambda registry: registry.register("m", "0" * 32, Path("/x"), TAGS),
    ],
    ids=["aliases", "version", "set_alias", "register"],
)
def test_a_silent_or_closed_port_is_unavailable_within_seconds(ask):
    began = time.monotonic()
    closed = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnavailable, match=f"{closed} is away: .*[Rr]efused"):
        ask(Registry(closed))
    assert time.monotonic() - began < 1
    with (
        silent_server() as url,
        pytest.raises(RegistryUnavailable, match=f"{url} does not answer within 1 s"),
    ):
        ask(Registry(url, seconds=1))
    assert time.monotonic() - began < 3


def test_the_default_patience_is_below_five_seconds():
    began = time.monotonic()
    with silent_server() as url, pytest.raises(RegistryUnavailable):
        Registry(url).aliases("m")
    assert 3 < time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("trickle", [b"x", b"HTTP/1.1 200 OK\r\nX: y\r\n", b"\r\n"])
def test_a_server_that_trickles_is_given_up(trickle):
    began = time.monotonic()
    with silent_server(trickle, every=0.05) as url, pytest.raises(RegistryUnavailable):
        Registry(url, seconds=1).aliases("m")
    assert time.monotonic() - began < 2


def test_a_frozen_mlflow_is_unavailable_and_then_answers(mlflow_server, training, tmp_path):
    registry = Registry(mlflow_server.url, seconds=1)
    with mlflow_server.frozen(), pytest.raises(RegistryUnavailable):
        registry.register("reg-frozen", training, tmp_path, TAGS)
    assert registry.register("reg-frozen", training, tmp_path, TAGS) == "1"


def test_another_server_at_the_port_is_not_taken_for_mlflow(mlflow_server):
    with pytest.raises(RegistryUnavailable, match="answers 404"):
        Registry(f"{mlflow_server.url}/elsewhere").aliases("m")
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<p>hi</p>"
    with (
        silent_server(page, every=0) as url,
        pytest.raises(RegistryUnavailable, match="is not MLflow: <p>hi</p>"),
    ):
        Registry(url).aliases("m")


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "", "http://"])
def test_an_address_that_is_no_servers(uri):
    with pytest.raises(ValueError, match=r"mlflow\.tracking_uri"):
        Registry(uri)


def test_a_password_is_sent_and_not_shown(mlflow_server):
    url = mlflow_server.url.replace("http://", "http://ann:s%40crt@")
    api = MLflowAPI(url)
    assert api._headers == {"Authorization": "Basic YW5uOnNAY3J0"}
    with pytest.raises(MLflowRefused) as refused:
        api.get("registered-models/get", name="nobody")
    assert "s%40crt" not in str(refused.value)
    assert "s@crt" not in str(refused.value)
