"""Which file a start uses, and that every other command then reads the same."""

from pathlib import Path

import pytest

from deploy import configuration_file
from deploy.stack import load_stack
from gateway.configuration import ConfigurationError
from gateway.settings import Settings, load_settings

LIGHT = {"url": "http://127.0.0.1:9/v1", "api_key_env": "UPSTREAM_KEY"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"LLMOPS_HOME": str(tmp_path / "home")})


def test_the_default_is_a_copy_that_may_be_edited(settings: Settings):
    path = configuration_file.in_force(settings, None)
    path.write_text(path.read_text() + "# mine\n")
    assert configuration_file.in_force(settings, None).read_text().endswith("# mine\n")
    configuration_file.link(settings, path)
    assert settings.config_path.resolve() == path
    load_stack(settings.config_path)


def test_a_file_that_is_given_is_what_commands_read(settings: Settings, tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text(configuration_file.default_text())
    for path in (configuration_file.in_force(settings, None), own):
        configuration_file.link(settings, configuration_file.in_force(settings, path))
        assert settings.config_path.resolve() == path


def test_light_has_one_upstream_for_every_model(settings: Settings):
    path = configuration_file.generate_light(settings, LIGHT, (1, 2))
    configuration, _ = load_stack(path)
    assert configuration.upstreams["default"].api_key_env == "UPSTREAM_KEY"
    assert configuration.models["*"].upstream == "default"
    assert (configuration.server.port, configuration.admin.port) == (1, 2)


def test_a_users_own_file_in_the_home_is_used_and_never_overwritten(
    settings: Settings, tmp_path: Path
):
    settings.home.mkdir()
    settings.config_path.write_text("# mine")
    assert configuration_file.in_force(settings, None) == settings.config_path
    with pytest.raises(ConfigurationError, match="is a file of yours"):
        configuration_file.link(settings, tmp_path / "other.yaml")
    assert settings.config_path.read_text() == "# mine"


def test_the_environments_file_goes_before_the_default(tmp_path: Path):
    path = tmp_path / "named.yaml"
    environ = {"LLMOPS_HOME": str(tmp_path / "home"), "LLMOPS_CONFIG": str(path)}
    settings = load_settings(environ)
    assert configuration_file.in_force(settings, None) == path
    configuration_file.link(settings, path)
    assert not (settings.home / "gateway.yaml").exists()


def test_a_file_that_is_not_there(settings: Settings, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no such file"):
        configuration_file.in_force(settings, tmp_path / "none.yaml")
