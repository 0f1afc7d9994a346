"""The stack's Redis, started by its own command: what it holds outlives a kill."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import redis
import yaml

from deploy.parts import parts_of
from deploy.stack import stack_of
from gateway.configuration import parse_configuration
from gateway.settings import load_settings
from tests.gateway_process import configuration, free_port

SECONDS = 20.0


@pytest.fixture
def command(tmp_path: Path) -> tuple[list[str], int]:
    port = free_port()
    given = configuration("http://127.0.0.1:9/v1", stack={"redis": {"port": port}})
    parsed = parse_configuration(yaml.safe_dump(given))
    settings = load_settings({"LLMOPS_HOME": str(tmp_path)})
    (part,) = [one for one in parts_of(parsed, stack_of(parsed), settings) if one.name == "redis"]
    (tmp_path / "redis").mkdir()
    return list(part.command), port


def started(command: list[str], client: redis.Redis) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.ping()
        except redis.exceptions.RedisError:
            time.sleep(0.05)
        else:
            return process
    raise AssertionError("Redis does not answer")


def test_features_outlive_a_kill(command: tuple[list[str], int]) -> None:
    client = redis.Redis(port=command[1], decode_responses=True)
    process = started(command[0], client)
    try:
        client.hset("feature", mapping={"late": "0.25"})
        time.sleep(2.2)  # it is on the disk within a second
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = started(command[0], client)
        assert client.hget("feature", "late") == "0.25"
    finally:
        client.close()
        process.kill()
        process.wait()
