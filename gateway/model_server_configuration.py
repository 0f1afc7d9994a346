"""The `model_server` section of the configuration: the process that serves tabular models."""

from pydantic import Field

from gateway.section import Section


class ModelServer(Section):
    """The KServe model server of the local stack.

    Attributes:
        host: address to listen on.
        port: its port.
        redis_url: Feast's online store, from which missing features are completed.
    """

    host: str = "127.0.0.1"
    port: int = Field(8200, ge=1, le=65535)
    redis_url: str = "redis://127.0.0.1:6390/0"
