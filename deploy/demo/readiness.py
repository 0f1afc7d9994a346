"""Whether the running stack can carry a demo, and the versions of what runs in it."""

import importlib.metadata
import urllib.error
import urllib.request
from typing import Any

import orjson

from deploy.health import probe
from pipelines.code_version import git_sha
from pipelines.installation import Installation
from pipelines.llm_spec import llm_spec
from pipelines.spec import Spec

PROBE_SECONDS = 5.0
PACKAGES = ("peft", "transformers", "torch", "dvc")


def problems_of(installation: Installation, spec: Spec) -> list[str]:
    """What stands in the way of a demo, each with what to do."""
    configuration = installation.configuration
    server = configuration.server
    found = []
    if spec.alias not in configuration.models:
        return [f"models: no {spec.alias!r} in {installation.settings.config_path}; add it there"]
    if configuration.mlflow.tracking_uri is None:
        return ["mlflow.tracking_uri is not set: the demo needs the whole stack (make up)"]
    places = {
        "gateway": f"http://{server.host}:{server.port}/health/ready",
        "MLflow": f"{configuration.mlflow.tracking_uri}/health",
        "controller": (installation.run_dir / "controller.alive").as_uri(),
    }
    upstream, _ = installation.upstream_of(spec.alias)
    if upstream.kind == "kserve":
        places["the model server"] = f"{upstream.url}/health/ready"
    for name, place in places.items():
        try:
            trouble = probe(place)
        except OSError as error:
            trouble = str(error)
        if trouble is not None:
            found.append(f"{name} is away ({trouble}): start the stack with make up")
    if not (installation.settings.home / "secrets" / "dev.key").exists():
        found.append("there is no development key: start the stack with make up")
    return found


def versions_of(installation: Installation, spec: Spec) -> dict[str, str]:
    """Versions of engine, MLflow and libraries, the base model's digest, and the commit."""
    from rlhf.adapter import base_digest

    upstream, _ = installation.upstream_of(spec.alias)
    base = llm_spec(spec).base_model
    engine = upstream.url.removesuffix("/v1")
    return {
        "commit": git_sha() or "not in Git",
        "engine": f"vLLM {_engine_version(engine)}",
        "MLflow": _text(f"{installation.tracking_uri()}/version"),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "base model": base,
        "base digest": base_digest(installation.model_folder(base))[:16],
    }


def _engine_version(url: str) -> str:
    try:
        answer: dict[str, Any] = orjson.loads(_text(f"{url}/version"))
        return str(answer["version"])
    except (ValueError, KeyError):
        return "unknown"


def _text(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as answer:
            return str(answer.read().decode().strip())
    except (OSError, urllib.error.HTTPError):
        return "unknown"
