"""This gateway as it is measured: a fresh home, one key, one worker."""

import sys
from pathlib import Path
from typing import Any

import yaml

from deploy.migrations import upgrade
from gateway.database import open_database
from gateway.keys import KeyStore
from gateway.settings import Settings, load_settings
from tests.bench.children import Child, free_port
from tests.bench.upstreams import STREAM_SCRIPT, Upstreams

UNARY_MODEL = "bench"
STREAM_MODEL = "stream"
BIG_STREAM = "chat,big-bytes=5000000,tokens=5000"


def configuration(upstreams: Upstreams, *, port: int, admin_port: int) -> dict[str, Any]:
    """The gateway's configuration: both upstreams, a price for each model."""
    price = {"input": 1.5, "output": 6}
    models = {
        UNARY_MODEL: {"upstream": "unary", "price": price},
        STREAM_MODEL: {"upstream": "stream", "model": STREAM_SCRIPT, "price": price},
        BIG_STREAM: {"upstream": "stream", "price": price},
    }
    return {
        "server": {"port": port},
        "admin": {"port": admin_port},
        "upstreams": {
            "unary": {"url": f"{upstreams.unary}/v1"},
            "stream": {"url": f"{upstreams.stream}/v1"},
        },
        "models": models,
        "feedback": {"metrics": {"thumbs_up": {"type": "boolean"}}},
    }


def make_home(home: Path, given: dict[str, Any]) -> tuple[Settings, str]:
    """Write the configuration and the state database with one key; returns that key."""
    home.mkdir()
    path = home / "gateway.yaml"
    path.write_text(yaml.safe_dump(given))
    environment = {"LLMOPS_HOME": str(home), "LLMOPS_CONFIG": str(path)}
    settings = load_settings(environment)
    upgrade(settings.database_url)
    store = KeyStore(open_database(settings.database_url), settings.key_digest_secret())
    token, _ = store.generate(actor="bench")
    return settings, token


def start_gateway(folder: Path, upstreams: Upstreams) -> tuple[Child, str, str]:
    """One worker on a home of its own; returns it with its address and its key."""
    port = free_port()
    given = configuration(upstreams, port=port, admin_port=free_port())
    settings, token = make_home(folder / "gateway", given)
    child = start_process("gateway.worker", folder, settings)
    return child, f"http://127.0.0.1:{port}", token


def start_process(module: str, folder: Path, settings: Settings) -> Child:
    """One of the gateway's processes, such as `gateway.admin`, on that home."""
    command = [sys.executable, "-m", module]
    return Child(module, command, folder=folder, environment=dict(settings.environ))
