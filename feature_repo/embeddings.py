"""Embeddings that were computed before, by the text they stand for.

The feature is the vector as the embedding server stores it (`gateway.embedding_vector`), bytes that
only that server writes. There is no batch source: an embedding that is gone is computed again.
"""

from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Bytes, String

embedding = Entity(
    name="embedding",
    join_keys=["embedding_key"],
    value_type=ValueType.STRING,
    description="One text for one tenant and model: tenant/model@revision/dimensions/digest",
)

embeddings = FeatureView(
    name="embeddings",
    entities=[embedding],
    schema=[
        Field(name="embedding_key", dtype=String),
        Field(name="vector", dtype=Bytes, description="Header, then little-endian float32"),
    ],
    online=True,
    description="Computed embeddings; they expire in the online store",
)

embedding_cache = FeatureService(
    name="embedding_cache",
    features=[embeddings],
    description="What POST /v1/embeddings looks up before it computes",
)
