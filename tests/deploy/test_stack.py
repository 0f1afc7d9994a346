"""The stack's section and the parts that follow from it."""

from pathlib import Path

import pytest
import yaml

from deploy.configuration_file import default_text
from deploy.parts import parts_of, redis_executable
from deploy.stack import Stack, load_stack, stack_of
from gateway.configuration import Configuration, ConfigurationError, parse_configuration
from gateway.settings import load_settings


def _default(**changes: object) -> Configuration:
    content = yaml.safe_load(default_text())
    for path, value in changes.items():
        place = content
        *folders, last = path.split("__")
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return parse_configuration(yaml.safe_dump(content))


def _parts(tmp_path: Path, configuration: Configuration) -> dict:
    settings = load_settings({"LLMOPS_HOME": str(tmp_path)})
    return {part.name: part for part in parts_of(configuration, stack_of(configuration), settings)}


def test_the_packaged_default_is_valid(tmp_path: Path):
    parts = _parts(tmp_path, _default())
    assert list(parts) == [
        "redis", "mlflow", "engine", "embeddings", "admin", "gateway", "shipper", "kserve",
        "controller", "schedule",
    ]  # fmt: skip
    assert parts["gateway"].needs == ("redis", "mlflow", "engine", "embeddings")
    assert parts["embeddings"].needs == parts["kserve"].needs == ("redis",)
    assert "--enable-lora" in parts["engine"].command


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stack__engine__modle", "x", "stack.engine.modle: unknown key"),
        ("stack__redis__port", "many", "stack.redis.port: "),
        ("stack__mlflow__port", 99999, "stack.mlflow.port: "),
        ("stack__kubernetes", {}, "stack.kubernetes: unknown key"),
    ],
)
def test_wrong_keys_are_named_by_path(key: str, value: object, said: str):
    with pytest.raises(ConfigurationError) as error:
        stack_of(_default(**{key: value}), origin="file.yaml")
    assert str(error.value).startswith(f"file.yaml: {said}")


def test_ports_come_from_the_file(tmp_path: Path):
    parts = _parts(
        tmp_path,
        _default(
            stack__engine__port=1001,
            stack__redis__port=1002,
            stack__mlflow__port=1003,
            server__port=1004,
            admin__port=1005,
            embeddings__port=1006,
            model_server__port=1007,
        ),
    )
    ports = {name: part.address[1] for name, part in parts.items() if part.address}
    assert ports == {
        "engine": 1001, "redis": 1002, "mlflow": 1003, "gateway": 1004, "admin": 1005,
        "embeddings": 1006, "kserve": 1007,
    }  # fmt: skip


def test_parts_can_be_switched_off(tmp_path: Path):
    configuration = _default(
        stack__engine__enabled=False,
        stack__mlflow__enabled=False,
        stack__redis__enabled=False,
        stack__kserve__enabled=False,
        stack__shipper__enabled=False,
        stack__controller__enabled=False,
        stack__schedule__enabled=False,
        embeddings=None,
    )
    assert list(_parts(tmp_path, configuration)) == ["admin", "gateway"]


def test_litellm_runs_only_where_an_upstream_wants_it(tmp_path: Path):
    configuration = _default(
        upstreams__others={"kind": "litellm", "url": "http://127.0.0.1:4999/v1"},
        litellm={"port": 4999, "models": {"gpt": {"model": "openai/gpt-x"}}},
    )
    parts = _parts(tmp_path, configuration)
    assert parts["litellm"].address == ("127.0.0.1", 4999)
    assert "litellm" in parts["gateway"].needs


def test_a_model_server_runs_where_it_is_wanted_and_installed(tmp_path: Path, monkeypatch):
    assert "kserve" not in _parts(tmp_path, parse_configuration("upstreams: {}\nmodels: {}"))
    monkeypatch.setattr("deploy.parts.find_spec", lambda _module: None)
    assert "kserve" not in _parts(tmp_path, _default())
    part = _parts(tmp_path, _default(stack__kserve__enabled=True))["kserve"]
    assert [one.install for one in part.requires if one.missing()] == [
        "pip install -c constraints.txt -e '.[tabular]'"
    ]


def test_an_engine_that_is_not_installed_is_said_with_the_remedy(tmp_path: Path):
    part = _parts(tmp_path, _default(stack__engine__python=str(tmp_path / "python")))["engine"]
    missing = [requirement for requirement in part.requires if requirement.missing()]
    assert "make engine" in missing[0].install


def test_a_model_folder_of_ones_own(tmp_path: Path):
    folder = tmp_path / "my-model"
    part = _parts(tmp_path, _default(stack__engine__model=str(folder)))["engine"]
    assert part.preparation is None
    assert any(requirement.missing() for requirement in part.requires)
    assert part.command[part.command.index("--served-model-name") + 1] == "my-model"


def test_redis_is_found_here():
    found = redis_executable(Stack())
    assert found is not None
    assert found.exists()


def test_load_names_the_file(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=str(tmp_path / "none.yaml")):
        load_stack(tmp_path / "none.yaml")


def test_a_redis_that_nobody_uses_is_a_mistake(tmp_path: Path):
    file = tmp_path / "file.yaml"
    file.write_text(default_text().replace("redis: {port: 6390}", "redis: {port: 6391}"))
    with pytest.raises(ConfigurationError, match=r"embeddings.redis_url: port 6390, but .* 6391"):
        load_stack(file)
    file.write_text(
        default_text().replace(
            '8200, redis_url: "redis://127.0.0.1:6390', '8200, redis_url: "redis://h:7'
        )
    )
    with pytest.raises(ConfigurationError, match=r"model_server.redis_url: port 7, but .* 6390"):
        load_stack(file)
