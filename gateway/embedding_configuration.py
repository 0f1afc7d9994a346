"""The `embeddings` section of the configuration: the embedding server, its models and cache."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from gateway.section import Name, Section


class EmbeddingModel(Section):
    """A model of the embedding server.

    Attributes:
        source: `sentence_transformers` computes here; `upstream` asks another server.
        path: folder of the model's files; the packaged all-MiniLM-L6-v2 by default.
        url, api_key_env, model: the other server, its key's variable, and its model name.
        dimensions: length of its vectors.
    """

    source: Literal["sentence_transformers", "upstream"] = "sentence_transformers"
    path: Path | None = None
    url: str | None = None
    api_key_env: str | None = None
    model: str | None = None
    dimensions: int = Field(384, ge=1)


class Embeddings(Section):
    """The embedding server: models, and their cache in Feast on Redis.

    Attributes:
        host: address to listen on.
        port: its port.
        redis_url: Feast's online store.
        ttl_seconds: how long a vector is kept.
    """

    host: str = "127.0.0.1"
    port: int = Field(4010, ge=0, le=65535)
    redis_url: str = "redis://127.0.0.1:6390/0"
    ttl_seconds: int = Field(7 * 24 * 3600, ge=1)
    models: dict[Name, EmbeddingModel] = {"all-MiniLM-L6-v2": EmbeddingModel()}
