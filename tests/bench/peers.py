"""The peers, in an environment of their own: vllm-router and the LiteLLM proxy."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.bench.children import Child, free_port
from tests.bench.gateway_home import STREAM_MODEL, UNARY_MODEL
from tests.bench.upstreams import STREAM_SCRIPT, Upstreams

PACKAGES = ("vllm-router==0.1.17", "litellm[proxy]==1.106.2")
MASTER_KEY = "sk-bench-master-key"


@dataclass(frozen=True, slots=True)
class Peers:
    """The environment that the peers are installed in."""

    folder: Path

    def program(self, name: str) -> str:
        """Path of one of its programs."""
        return str(self.folder / "bin" / name)


def installed_peers(folder: Path, say: Callable[[str], None]) -> Peers:
    """The peers' environment; made with pip where it is missing (2 minutes, 0.8 GB)."""
    peers = Peers(folder.absolute())
    mark = folder / "installed.txt"
    wanted = "\n".join(PACKAGES)
    if mark.exists() and mark.read_text() == wanted:
        return peers
    say(f"installing {' and '.join(PACKAGES)} into {folder} (once, about 2 minutes)")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([peers.program("pip"), "install", "--quiet", *PACKAGES], check=True)
    mark.write_text(wanted)
    return peers


def start_vllm_router(peers: Peers, folder: Path, *, kind: str, upstream: str) -> tuple[Child, str]:
    """vllm-router before one upstream; returns it with its address."""
    port = free_port()
    command = [
        peers.program("vllm-router"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", upstream, "--policy", "round_robin"),
        *("--log-level", "error", "--prometheus-port", str(free_port())),
    ]
    child = Child(f"vllm-router-{kind}", command, folder=folder)
    return child, f"http://127.0.0.1:{port}"


def start_litellm(peers: Peers, folder: Path, upstreams: Upstreams) -> tuple[Child, str, str]:
    """The LiteLLM proxy before both upstreams; returns it with its address and its key."""
    port = free_port()
    path = folder / "litellm.yaml"
    models = [
        _litellm_model(UNARY_MODEL, UNARY_MODEL, upstreams.unary),
        _litellm_model(STREAM_MODEL, STREAM_SCRIPT, upstreams.stream),
    ]
    configuration = {
        "model_list": models,
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    path.write_text(yaml.safe_dump(configuration))
    command = [
        peers.program("litellm"),
        *("--config", str(path), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1"),
    ]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    child = Child("litellm", command, folder=folder, environment=environment)
    return child, f"http://127.0.0.1:{port}", MASTER_KEY


def _litellm_model(name: str, upstream_name: str, url: str) -> dict[str, object]:
    parameters = {"model": f"openai/{upstream_name}", "api_base": f"{url}/v1", "api_key": "none"}
    return {"model_name": name, "litellm_params": parameters}
