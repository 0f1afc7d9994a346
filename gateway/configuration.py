"""The gateway's configuration: one YAML file, validated, unknown keys refused with their path.

Secrets never stand in the file: where one is needed the file names an environment variable.
`config_hash` identifies what was in force and is kept with every request.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
import yaml
from pydantic import Field, FilePath, ValidationError, model_validator

from gateway.embedding_configuration import Embeddings
from gateway.model_server_configuration import ModelServer
from gateway.price_configuration import Price, SelfHosted
from gateway.section import Name, Section, Url

S = TypeVar("S", bound=Section)
WILDCARD = "*"


class ConfigurationError(ValueError):
    """The file cannot be used; the message has one line for each mistake, with its key's path."""


class Listen(Section):
    """An address to listen on."""

    host: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)


class Server(Listen):
    """The data plane.

    Attributes:
        host: address to listen on.
        port: every worker listens on it (SO_REUSEPORT).
        workers: gateway processes.
        drain_seconds: how long requests under way may take to end after SIGTERM.
    """

    port: int = Field(4000, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=64)
    drain_seconds: float = Field(30, ge=0, le=600)


class Admin(Listen):
    """The admin plane: keys, teams, log, costs, metrics; a credential of its own.

    Attributes:
        host: address to listen on; keep it off public networks.
        port: its port.
    """

    port: int = Field(4001, ge=0, le=65535)


class Limits(Section):
    """What one request may be.

    Attributes:
        body_bytes: length of a body; more is a 413.
        head_bytes: length of the request line and header fields; more is a 431.
        head_fields: number of header fields.
        head_seconds, body_seconds: how long head and body may take to arrive; more is a 408.
        json_depth: nesting of a body.
        choices: largest `n`.
        messages: messages of a chat.
        embedding_inputs: texts of one embeddings call.
        instances: rows of one prediction.
        in_flight: requests under way per worker; one more is a 503.
        stall_seconds: a client that takes nothing of its answer for so long is let go.
    """

    body_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    head_bytes: int = Field(16 * 1024, ge=1024)
    head_fields: int = Field(64, ge=8)
    head_seconds: float = Field(10, gt=0)
    body_seconds: float = Field(30, gt=0)
    json_depth: int = Field(64, ge=8, le=512)
    choices: int = Field(8, ge=1, le=128)
    messages: int = Field(1024, ge=1)
    embedding_inputs: int = Field(2048, ge=1)
    instances: int = Field(1024, ge=1)
    in_flight: int = Field(1024, ge=1)
    stall_seconds: float = Field(60, gt=0)


class Timeouts(Section):
    """How long an upstream may take, in seconds.

    Attributes:
        connect: to accept a connection.
        first_byte: to begin its answer (a unary answer begins when it is finished).
        idle: between two pieces of a stream.
        total: for everything.
    """

    connect: float = Field(2, gt=0)
    first_byte: float = Field(60, gt=0)
    idle: float = Field(30, gt=0)
    total: float = Field(600, gt=0)


class Upstream(Section):
    """A server that answers. A request can never name one.

    Attributes:
        kind: `openai` speaks OpenAI's API at `url`; `litellm` is the local process around LiteLLM;
            `kserve` serves tabular models by the Open Inference Protocol.
        url: base address up to and with `/v1`, or with `/v2` for `kserve`.
        api_key_env: environment variable with the upstream's API key.
        engine: `vllm` is sent our request id and a cache salt for each tenant.
        on_disconnect: when the client goes away, `cancel` the upstream or `drain` it.
        stream_usage: ask for usage on streams (`stream_options.include_usage`).
        replicas: addresses of every replica behind `url`, each like it: adapters, or versions of
            tabular models, are loaded on all of them; `url` itself by default.
        tell_tenant: send the tenant in `x-llmops-tenant` (the embedding server keys by it).
        connections: open connections at most, per worker.
    """

    kind: Literal["openai", "litellm", "kserve"] = "openai"
    url: Url
    api_key_env: str | None = None
    engine: Literal["vllm", "generic"] = "generic"
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    stream_usage: bool = True
    replicas: tuple[Url, ...] = ()
    tell_tenant: bool = False
    connections: int = Field(256, ge=1)
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _speaks_v2(self) -> "Upstream":
        for url in (self.url, *self.replicas) if self.kind == "kserve" else ():
            if not url.rstrip("/").endswith("/v2"):
                raise ValueError(f"the address of a KServe server ends with /v2: {url}")
        return self


class Model(Section):
    """A model's public name (alias) and where it is answered.

    Attributes:
        upstream: name of an entry of `upstreams`.
        model: the name the upstream knows it by; the alias itself by default. Of a tabular model,
            the version that answers until one is promoted; none by default.
        price: explicit price, or
        self_hosted: price derived from a node, or neither: LiteLLM's price table.
        tokenizer: a `tokenizer.json`, to count tokens where the upstream gives no usage.
        max_output_tokens: cap put on every request.
    """

    upstream: Name
    model: str | None = None
    price: Price | None = None
    self_hosted: SelfHosted | None = None
    tokenizer: FilePath | None = None
    max_output_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_price(self) -> "Model":
        if self.price and self.self_hosted:
            raise ValueError("give either price or self_hosted, not both")
        return self


class Metric(Section):
    """A feedback metric that applications may send.

    Attributes:
        type: what a value is.
        level: what it is about: one request or a whole episode.
        optimize: which direction is good.
        categories: the values of a categorical metric.
        minimum, maximum: bounds of a float.
    """

    type: Literal["boolean", "float", "categorical"]
    level: Literal["request", "episode"] = "request"
    optimize: Literal["min", "max"] = "max"
    categories: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _categories_fit(self) -> "Metric":
        if (self.type == "categorical") != bool(self.categories):
            raise ValueError("categories belong to a categorical metric, and it needs them")
        return self


class Feedback(Section):
    """Declared feedback metrics, by name. `comment` and `demonstration` always exist."""

    metrics: dict[Name, Metric] = {}


class Log(Section):
    """The request log.

    Attributes:
        durability: `buffered` writes a record before the last byte of its response and syncs it
            at most `sync_seconds` later; `sync` syncs before the last byte.
        table: folder or `s3://` URL of the Delta table; under LLMOPS_HOME by default.
        sync_seconds: see durability.
        storage_options: credentials and settings of object storage, as deltalake takes them.
        segment_bytes, segment_seconds: a spool segment is closed at this size or age.
        spool_bytes: the spool's cap; beyond it requests are refused before the upstream is called.
        commit_seconds: the shipper commits closed segments this often.
        bodies: keep request and response bodies (a key may switch them off for itself).
        retain_bodies_days, retain_days: how long bodies and rows are kept; None is forever.
    """

    durability: Literal["buffered", "sync"] = "buffered"
    sync_seconds: float = Field(0.05, gt=0, le=1)
    table: str | None = None
    storage_options: dict[str, str] = {}
    segment_bytes: int = Field(16 * 1024 * 1024, ge=4096)
    segment_seconds: float = Field(2, gt=0)
    spool_bytes: int = Field(2 * 1024**3, ge=65536)
    commit_seconds: float = Field(2, gt=0)
    bodies: bool = True
    retain_bodies_days: int | None = Field(None, ge=1)
    retain_days: int | None = Field(None, ge=1)


class LiteLLMProvider(Section):
    """One model that the LiteLLM process serves.

    Attributes:
        model: LiteLLM's name for it, such as `anthropic/claude-sonnet-4-5`.
        api_base: address, where it is not the provider's own.
        api_key_env: environment variable with the provider's key.
    """

    model: str
    api_base: str | None = None
    api_key_env: str | None = None


class LiteLLM(Section):
    """The small process around LiteLLM, an upstream like any other.

    Attributes:
        host: address to listen on.
        port: its port.
    """

    host: str = "127.0.0.1"
    port: int = Field(4020, ge=0, le=65535)
    models: dict[Name, LiteLLMProvider] = {}


class Traces(Section):
    """OpenTelemetry spans, sent by the shipper.

    Attributes:
        endpoint: OTLP/HTTP address, such as MLflow's `http://127.0.0.1:5000/v1/traces`.
        experiment: name of the MLflow experiment that shows them.
        sample: share of requests, 0 to 1; decided by the request id, the same everywhere.
        bodies: put messages into the spans.
    """

    endpoint: str | None = None
    experiment: str = "gateway"
    sample: float = Field(1.0, ge=0, le=1)
    bodies: bool = True


class MLflow(Section):
    """The MLflow server that keeps training runs and the model registry.

    Attributes:
        tracking_uri: its address, such as `http://127.0.0.1:5000`; none: no training here.
    """

    tracking_uri: str | None = None


class Configuration(Section):
    """The whole file. `stack`, `data`, `drift`, `schedule`, `triggers` and `kubeflow` belong to
    packages above the gateway, which check them (`owned_section`)."""

    server: Server = Server()
    admin: Admin = Admin()
    limits: Limits = Limits()
    upstreams: dict[Name, Upstream]
    models: dict[Name, Model]
    feedback: Feedback = Feedback()
    log: Log = Log()
    embeddings: Embeddings | None = None
    litellm: LiteLLM | None = None
    model_server: ModelServer = ModelServer()
    traces: Traces = Traces()
    mlflow: MLflow = MLflow()
    stack: dict[str, Any] = {}
    data: dict[str, Any] = {}
    drift: dict[str, Any] = {}
    schedule: dict[str, Any] = {}
    triggers: dict[str, Any] = {}
    kubeflow: dict[str, Any] = {}

    @model_validator(mode="after")
    def _references_exist(self) -> "Configuration":
        for alias, model in self.models.items():
            if model.upstream not in self.upstreams:
                known = ", ".join(sorted(self.upstreams)) or "none"
                raise ValueError(
                    f"models.{alias}.upstream: no upstream {model.upstream!r} (there are: {known})"
                )
        return self

    @property
    def config_hash(self) -> str:
        """Twelve hex digits that stand for everything in the file."""
        canonical = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()[:12]


def owned_section(
    configuration: Configuration, name: str, kind: type[S], origin: str = "configuration"
) -> S:
    """The section `name`, validated as its owner's `kind`.

    Raises: ConfigurationError with every wrong key's path.
    """
    try:
        return kind.model_validate(getattr(configuration, name))
    except ValidationError as error:
        found = [{**item, "loc": (name, *item["loc"])} for item in error.errors()]
        lines = [f"{origin}: {_explain(item)}" for item in found]
        raise ConfigurationError("\n".join(lines)) from error


def parse_configuration(text: str, origin: str = "configuration") -> Configuration:
    """Validate YAML `text`; raises ConfigurationError that names every wrong key's path."""
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{origin}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{origin}: expected keys and values at the top")
    try:
        return Configuration.model_validate(raw)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(item)}" for item in error.errors()]
        raise ConfigurationError("\n".join(lines)) from error


def load_configuration(path: Path) -> Configuration:
    """Read and validate the file at `path`."""
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; set LLMOPS_CONFIG") from error
    return parse_configuration(text, origin=str(path))


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "file"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"
