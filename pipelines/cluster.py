"""The `kubeflow` section of the configuration: what is told to parts of a cluster."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from gateway.configuration import Configuration, ConfigurationError, owned_section
from gateway.section import Name, Section, Span, Url
from gateway.settings import Settings
from pipelines.json_server import JsonServer

IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Kubernetes(Section):
    """The API server; as a pod is told of it, by default.

    Attributes:
        url: its address.
        token_env: environment variable with a bearer token, or
        token_file: file with one, read at every start.
        ca_file: certificates that the address is checked by.
        namespace: where the InferenceServices are.
    """

    url: Url = "https://kubernetes.default.svc"
    token_env: str | None = None
    token_file: Path = IN_CLUSTER / "token"
    ca_file: Path | None = IN_CLUSTER / "ca.crt"
    namespace: Name = "default"


class InferenceService(Section):
    """The KServe InferenceService that serves an alias's versions.

    Attributes:
        name: its name; the alias by default.
        model_format: `mlflow` for tabular models, `huggingface` for language models.
        storage_uri: where a version's files lie, with `{name}`, `{version}` and `{served_name}`.
        base_storage_uri: what is served while no version is champion; none: nothing is changed.
        runtime: serving runtime; KServe chooses one by the format, by default.
        protocol: protocol version of the runtime.
        service_account: account whose secrets open the storage.
        ready_within: how long it may take until it is ready; then it goes back.
    """

    name: Name | None = None
    model_format: Literal["mlflow", "huggingface"] = "mlflow"
    storage_uri: str = Field(pattern=r"^[a-z0-9+.-]+://\S+$")
    base_storage_uri: str | None = Field(None, pattern=r"^[a-z0-9+.-]+://\S+$")
    runtime: str | None = None
    protocol: Literal["v1", "v2"] = "v2"
    service_account: str | None = None
    ready_within: Span = 600.0

    @model_validator(mode="after")
    def _names_the_version(self) -> "InferenceService":
        try:
            first, second = (self.uri("a", version, f"a-{version}") for version in ("1", "2"))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                "storage_uri: {name}, {version} and {served_name} can be filled in, nothing else"
            ) from error
        if first == second:
            raise ValueError("storage_uri: the same for every version; put {served_name} into it")
        return self

    def uri(self, name: str, version: str, served_name: str) -> str:
        """Where the files of a version lie."""
        return self.storage_uri.format(name=name, version=version, served_name=served_name)


class Kubeflow(Section):
    """Parts of a cluster that follow the registry; none by default.

    Attributes:
        model_registry_url: address of a Kubeflow Model Registry, such as
            `http://model-registry-service.kubeflow:8080`; registrations, promotions and rollbacks
            are recorded there too.
        model_registry_token_env: environment variable with a bearer token for it.
        inference_services: by alias, what `llmops reconcile` keeps at champion and challenger.
    """

    model_registry_url: Url | None = None
    model_registry_token_env: str | None = None
    kubernetes: Kubernetes = Kubernetes()
    inference_services: dict[Name, InferenceService] = {}


def kubeflow_of(configuration: Configuration) -> Kubeflow:
    """The section; ConfigurationError with every wrong key's path."""
    return owned_section(configuration, "kubeflow", Kubeflow)


def model_registry(plan: Kubeflow, settings: Settings) -> JsonServer | None:
    """The model registry's server; None if none is configured."""
    if plan.model_registry_url is None:
        return None
    token = _secret(settings, "model_registry_token_env", plan.model_registry_token_env)
    return JsonServer("the model registry", plan.model_registry_url, token)


def kubernetes_api(plan: Kubeflow, settings: Settings) -> JsonServer:
    """The API server; ConfigurationError where its token cannot be read."""
    given = plan.kubernetes
    if given.token_env is not None:
        token = _secret(settings, "kubernetes.token_env", given.token_env)
    else:
        try:
            token = given.token_file.read_text().strip()
        except OSError as error:
            raise ConfigurationError(
                f"kubeflow.kubernetes.token_file: {given.token_file}: {error.strerror}; give the "
                "file with a token, or token_env"
            ) from error
    ca_file = given.ca_file if given.url.startswith("https:") else None
    return JsonServer("Kubernetes", given.url, token, ca_file)


def _secret(settings: Settings, key: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    value = settings.secret_value(variable)
    if value is None:
        raise ConfigurationError(f"kubeflow.{key}: the environment variable {variable} is not set")
    return value
