"""The `stack` section of the configuration: what runs on this machine beside the gateway.

The gateway leaves the section alone; it is validated here, with the same rules: an unknown key is
refused with its path.
"""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from deploy.engine_model import MODELS
from gateway.configuration import (
    Configuration,
    ConfigurationError,
    load_configuration,
    owned_section,
)
from gateway.section import Section

LOOPBACK = "127.0.0.1"


class Engine(Section):
    """vLLM.

    Attributes:
        enabled: start it here.
        model: a packaged model (`smollm2-135m-instruct`, `gemma3-270m`), or the folder of a model
            in Hugging Face format.
        served_name: the name it answers to; the packaged model's own by default.
        port: where it listens, on loopback.
        max_model_len: context length in tokens.
        python: interpreter of the environment that vLLM is installed in; LLMOPS_ENGINE_PYTHON or
            `.venv-engine/bin/python` by default.
        kv_cache_gib: memory for the key-value cache when it runs on the CPU, GiB.
        lora_rank: highest rank of LoRA adapters; 0 switches adapters off.
        arguments: further arguments of vLLM's server.
        start_seconds: how long it may take to be ready.
    """

    enabled: bool = True
    model: str = "smollm2-135m-instruct"
    served_name: str | None = None
    port: int = Field(8100, ge=1, le=65535)
    max_model_len: int = Field(2048, ge=128)
    python: Path | None = None
    kv_cache_gib: int = Field(1, ge=1)
    lora_rank: int = Field(16, ge=0, le=512)
    arguments: tuple[str, ...] = ()
    start_seconds: float = Field(600, gt=0)

    @property
    def packaged(self) -> bool:
        """Whether the model comes in a package and is converted here."""
        return self.model in MODELS

    @property
    def name(self) -> str:
        """The name that the engine answers to."""
        return self.served_name or (self.model if self.packaged else Path(self.model).name)


class Redis(Section):
    """Redis: counters and the embedding cache.

    Attributes:
        enabled: start it here.
        port: where it listens, on loopback.
        executable: instead of the one on the PATH, or the one that a package carries.
        memory_mb: memory for its data, MiB; beyond it the oldest cached entries go.
    """

    enabled: bool = True
    port: int = Field(6390, ge=1, le=65535)
    executable: Path | None = None
    memory_mb: int = Field(256, ge=16)


class MLflow(Section):
    """The MLflow server, with SQLite and files under LLMOPS_HOME.

    Attributes:
        enabled: start it here.
        port: where it listens, on loopback.
    """

    enabled: bool = True
    port: int = Field(5000, ge=1, le=65535)


class Switch(Section):
    """A part that is configured elsewhere and only switched on or off here.

    Attributes:
        enabled: start it here.
    """

    enabled: bool = True


class ModelServer(Section):
    """KServe's model server (its settings are in `model_server`), where an upstream is one.

    Attributes:
        enabled: start it here; by default where the package kserve is installed.
    """

    enabled: bool | None = None


class Stack(Section):
    """The whole section.

    Attributes:
        embeddings: the embedding server (its settings are in `embeddings`).
        shipper: the process that moves the spool into the request log's table.
        controller: the process that loads adapters on the engine's replicas and decides
            experiments; it runs where `mlflow.tracking_uri` is set.
        schedule: the process that runs jobs when they are due, and lets verdicts trigger what the
            rules say; it runs where `schedule` or `triggers` says something.
        models_dir: where converted models are kept; LLMOPS_HOME/models by default. Several
            installations may share one.
    """

    engine: Engine = Engine()
    redis: Redis = Redis()
    mlflow: MLflow = MLflow()
    embeddings: Switch = Switch()
    kserve: ModelServer = ModelServer()
    shipper: Switch = Switch()
    controller: Switch = Switch()
    schedule: Switch = Switch()
    models_dir: Path | None = None


def stack_of(configuration: Configuration, origin: str = "configuration") -> Stack:
    """The validated `stack` section; raises ConfigurationError with every wrong key's path."""
    return owned_section(configuration, "stack", Stack, origin)


def load_stack(path: Path) -> tuple[Configuration, Stack]:
    """Read and validate the whole file at `path`, the stack's section included."""
    configuration = load_configuration(path)
    stack = stack_of(configuration, origin=str(path))
    _same_redis(configuration, stack, str(path))
    return configuration, stack


def _same_redis(configuration: Configuration, stack: Stack, origin: str) -> None:
    """A Redis that is started here but not the one that is used is a mistake."""
    used = {}
    if configuration.embeddings is not None:
        used["embeddings"] = configuration.embeddings.redis_url
    if any(upstream.kind == "kserve" for upstream in configuration.upstreams.values()):
        used["model_server"] = configuration.model_server.redis_url
    for section, address in used.items() if stack.redis.enabled else ():
        port = urlsplit(address).port or 6379
        if port != stack.redis.port:
            raise ConfigurationError(
                f"{origin}: {section}.redis_url: port {port}, but stack.redis.port is "
                f"{stack.redis.port}; make them equal, or set stack.redis.enabled to false"
            )
