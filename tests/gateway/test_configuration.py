"""One file, every mistake named with its path; a reload is all or nothing."""

import os
import time

import pytest

from gateway.configuration import ConfigurationError, load_configuration, parse_configuration
from gateway.live import Live
from gateway.settings import SettingsError, load_settings, read_or_make_secret

GOOD = "upstreams: {u: {url: 'http://x/v1'}}\nmodels: {m: {upstream: u, price: {input: 1}}}\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD + "colour: red", "colour: unknown key"),
        (GOOD + "server: {prt: 1}", "server.prt: unknown key"),
        (GOOD + "server: {port: high}", "server.port"),
        (GOOD.replace("upstream: u", "upstream: v"), "models.m.upstream: no upstream 'v'"),
        (GOOD.replace("input: 1", "input: -1"), "models.m.price.input"),
        (GOOD.replace("http://x/v1", "file:///etc"), "upstreams.u.url"),
        ("- 1", "expected keys and values"),
        ("a: [", "not YAML"),
        (GOOD + "feedback: {metrics: {a: {type: categorical}}}", "feedback.metrics.a"),
    ],
)
def test_each_mistake_is_named(text, named):
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration(text, origin="f.yaml")
    assert named in str(caught.value)
    assert str(caught.value).startswith("f.yaml: ")


def test_the_hash_stands_for_the_content():
    one, two = parse_configuration(GOOD), parse_configuration(GOOD + "server: {port: 4000}")
    assert one.config_hash == two.config_hash
    assert one.config_hash != parse_configuration(GOOD + "server: {port: 4002}").config_hash


def test_a_missing_file_says_what_to_set(tmp_path):
    with pytest.raises(ConfigurationError, match="LLMOPS_CONFIG"):
        load_configuration(tmp_path / "none.yaml")


def test_a_bad_file_keeps_the_old_one_and_says_so(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(GOOD)
    live = Live(path, {})
    old = live.current
    path.write_text(GOOD + "colour: red")
    assert live.reload_if_changed() is False
    assert live.current is old and "colour" in (live.error or "")
    path.write_text(GOOD.replace("input: 1", "input: 2"))
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert live.reload_if_changed() is True
    assert live.error is None and live.current.config_hash != old.config_hash


def test_a_file_that_is_no_text_keeps_the_old_one(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(GOOD)
    live = Live(path, {})
    for content in (b"\xff\xfe", b"[" * 5000, b"a: !!binary x"):
        path.write_bytes(content)
        assert live.reload_if_changed() is False
        assert live.error
    assert live.current.config_hash


def test_secrets_are_made_once_and_never_shown(tmp_path):
    settings = load_settings({"LLMOPS_HOME": str(tmp_path), "LLMOPS_DATABASE_URL": "pg://u:pw@h/d"})
    assert settings.key_digest_secret() == settings.key_digest_secret()
    assert "pw" not in repr(settings)
    path = tmp_path / "secrets" / "key_digest.secret"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_or_make_secret(path)


def test_a_model_servers_address_ends_with_its_protocol():
    text = "upstreams: {k: {kind: kserve, url: 'http://127.0.0.1:8200'}}\nmodels: {}"
    with pytest.raises(ConfigurationError, match=r"upstreams\.k.*ends with /v2"):
        parse_configuration(text)
    parse_configuration(text.replace("8200", "8200/v2"))
