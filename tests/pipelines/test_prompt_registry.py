"""Prompts in a real MLflow: one version for each content, which MLflow's own client loads."""

import threading
import time
from typing import Any

import pytest

from pipelines.mlflow_api import MLflowAPI
from pipelines.prompt_registry import PromptRegistry, registered_name, require_storable
from pipelines.registry import Registry, RegistryRefused, RegistryUnavailable
from prompts.library import load_library
from prompts.prompt import Prompt
from tests.gateway_process import free_port
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.silent_server import silent_server

TAGS = {"git_sha": "a" * 40, "path": "prompts/library/x.yaml"}


@pytest.fixture
def registry(mlflow_server: MLflowServer) -> PromptRegistry:
    return PromptRegistry(mlflow_server.url, seconds=10)


def prompt(name: str, said: str = "Greet {{ who }}.", **changes: Any) -> Prompt:
    given = {"name": name, "template": said, "variables": [{"name": "who"}], "model": "m"}
    return Prompt.model_validate(given | changes)


def test_a_content_is_one_version(registry):
    one, other = prompt("reg-once"), prompt("reg-once", "Greet {{ who }}!")
    assert registry.find("reg-once", one.content_hash) is None
    assert registry.lacks("reg-once")
    assert registry.put(one, TAGS) == "1"
    assert registry.put(other, {**TAGS, "git_sha": None}) == "2"
    assert registry.put(one, {**TAGS, "git_sha": "b"}) == "1"
    assert registry.find("reg-once", one.content_hash) == "1"
    assert registry.find("reg-once", other.content_hash) == "2"
    assert not registry.lacks("reg-once")


def test_mlflows_own_client_loads_what_was_written(registry, mlflow_server):
    client = pytest.importorskip("mlflow").MlflowClient(mlflow_server.url)
    library = load_library()["assistant"]  # under a name of its own: the server is shared
    given = Prompt.model_validate(
        {"name": "reg-assistant", "description": library.description, **library.content}
    )
    version = registry.put(given, TAGS)
    registry.set_alias("reg-assistant", "production", version)
    name = registered_name("reg-assistant")
    for found in (
        client.load_prompt(f"prompts:/{name}@production"),
        client.get_prompt_version(name, version),
    ):
        assert found.template == [message.model_dump() for message in given.messages]
        assert {"git_sha", "path", "content_hash"} <= found.tags.keys()
        assert (found.tags["git_sha"], found.tags["path"]) == (TAGS["git_sha"], TAGS["path"])
        assert found.tags["content_hash"] == given.content_hash
        assert (found.commit_message, int(found.version)) == (given.description, int(version))
    assert found.model_config["model_name"] == given.model
    assert found.model_config["max_tokens"] == given.params["max_tokens"]
    assert name in [one.name for one in client.search_prompts()]


def test_a_model_of_the_same_name_is_no_hindrance_and_one_in_its_place_is_told(
    registry, mlflow_server
):
    api = MLflowAPI(mlflow_server.url, seconds=10)
    api.post("registered-models/create", {"name": "reg-model"})
    assert registry.put(prompt("reg-model"), TAGS) == "1"
    assert Registry(mlflow_server.url).aliases("reg-model") == {}
    api.post("registered-models/create", {"name": registered_name("reg-taken")})
    with pytest.raises(RegistryRefused, match=r"has a model named prompt\.reg-taken"):
        registry.put(prompt("reg-taken"), TAGS)


def test_four_at_once_agree_on_one_version(registry):
    found: list[str] = []
    ready = threading.Barrier(4)

    def put() -> None:
        ready.wait()
        found.append(registry.put(prompt("reg-race"), TAGS))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert set(found) == {registry.find("reg-race", prompt("reg-race").content_hash)}


def test_labels_are_aliases(registry):
    assert registry.aliases("reg-alias") == {}
    one = registry.put(prompt("reg-alias"), TAGS)
    two = registry.put(prompt("reg-alias", "Hi {{ who }}"), TAGS)
    registry.set_alias("reg-alias", "production", one)
    registry.set_alias("reg-alias", "candidate", two)
    registry.set_alias("reg-alias", "production", two)
    assert registry.aliases("reg-alias") == {"production": two, "candidate": two}
    with pytest.raises(RegistryRefused, match="version=99"):
        registry.set_alias("reg-alias", "production", "99")


def test_text_of_any_kind_comes_back(registry, mlflow_server):
    said = "{% raw %}{{ ü }} \" \\ \x00 \n{% endraw %}' 漢字 🙂"
    given = prompt("reg-text", said, params={"stop": ["\n", "é"], "temperature": 0.1})
    version = registry.put(given, TAGS)
    found = MLflowAPI(mlflow_server.url).get(
        "model-versions/get", name=registered_name("reg-text"), version=version
    )
    tags = {one["key"]: one["value"] for one in found["model_version"]["tags"]}
    again = Prompt.model_validate_json(f'{{"name": "reg-text", {tags["content"][1:]}')
    assert again.content_hash == given.content_hash


def test_what_mlflow_does_not_take_is_said_before():
    require_storable(prompt("large", "x" * 90_000))
    with pytest.raises(ValueError, match=r"prompt large: .* MLflow takes 100000"):
        require_storable(prompt("large", "x" * 99_999))
    with pytest.raises(ValueError, match="MLflow takes"):
        require_storable(prompt("large", "漢" * 30_000))


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry: registry.find("p", "0" * 64),
        lambda registry: registry.put(prompt("p"), TAGS),
        lambda registry: registry.aliases("p"),
        lambda registry: registry.set_alias("p", "production", "1"),
        lambda registry: registry.lacks("p"),
    ],
    ids=["find", "put", "aliases", "set_alias", "lacks"],
)
def test_a_silent_or_closed_port_is_unavailable_within_seconds(ask):
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="is away"):
        ask(PromptRegistry(f"http://127.0.0.1:{free_port()}"))
    with silent_server() as url, pytest.raises(RegistryUnavailable, match="does not answer"):
        ask(PromptRegistry(url, seconds=1))
    assert time.monotonic() - began < 4
