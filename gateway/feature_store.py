"""The feature store as this installation runs it: `feature_repo/`, on the configured Redis.

The repository's own `feature_store.yaml` names the local stack. The values that are in force here
(Redis, and the registry under `LLMOPS_HOME`) are written to `LLMOPS_HOME/feature_store.yaml`, with
which a person runs any `feast` command on this installation. Applying the definitions is
idempotent, and processes that start together take turns.

Feast takes seconds to import, so it is imported where it is needed.
"""

import fcntl
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson
import yaml

from gateway.whole_file import write_whole

if TYPE_CHECKING:
    from feast import FeatureStore, RepoConfig

REPOSITORY = Path(__file__).parent.parent / "feature_repo"
SOCKET_SECONDS = 0.25


class FeatureStoreError(ValueError):
    """The feature store cannot be set up; the message says what to change."""


def open_feature_store(home: Path, redis_url: str, *, key_ttl_seconds: int) -> "FeatureStore":
    """The store with its definitions applied. Redis need not be there.

    `key_ttl_seconds` is how long this process's writes stay; it is no part of the shared file.
    """
    from feast import FeatureStore

    home.mkdir(parents=True, exist_ok=True)
    with _turn(home / "feature_store.lock"):
        shared = _shared_configuration(home, redis_url)
        write_whole(
            home / "feature_store.yaml", yaml.safe_dump(shared, sort_keys=False), private=True
        )
        store = FeatureStore(config=_own_configuration(shared, key_ttl_seconds))
        apply(store, definitions(REPOSITORY))
    return store


def apply(store: "FeatureStore", found: list[Any]) -> None:
    """Put definitions into a store's registry. Redis need not be there."""
    with warnings.catch_warnings():
        # On-demand views are called experimental; what they cost is measured in docs/features.md.
        warnings.filterwarnings("ignore", "On demand feature view", RuntimeWarning)
        store.apply(found)


def definitions(repository: Path) -> list[Any]:
    """The Feast objects that the repository's files define, as `feast apply` would find them."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView
    from feast.data_source import DataSource

    kinds = Entity, FeatureView, OnDemandFeatureView, FeatureService, DataSource
    found: dict[tuple[str, str], Any] = {}
    for path in sorted(repository.glob("*.py")):
        if path.name == "__init__.py":
            continue
        spec = importlib.util.spec_from_file_location(f"feature_repo_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise FeatureStoreError(f"{path}: cannot be loaded as Python")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for value in vars(module).values():
            if isinstance(value, kinds):
                found[(type(value).__name__, value.name)] = value
    if not found:
        raise FeatureStoreError(f"{repository}: no definitions; is the installation complete?")
    return list(found.values())


def connection_string(redis_url: str) -> str:
    """Feast's `host:port,key=value` for a `redis://` or `rediss://` URL.

    Sockets time out soon and nothing is tried twice: an embedding is computed rather than waited
    for. (redis-py's own default is three more tries, seconds apart.)
    """
    url = urlsplit(redis_url)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise FeatureStoreError(
            f"embeddings.redis_url: {url.scheme}://{url.hostname or ''} is not "
            "redis://[user:password@]host[:port][/database] or rediss://…"
        )
    if ":" in url.hostname:
        raise FeatureStoreError("embeddings.redis_url: Feast needs a host name, not IPv6 numbers")
    parts = [f"{url.hostname}:{url.port or 6379}", f"db={url.path.strip('/') or 0}"]
    if url.scheme == "rediss":
        parts.append("ssl=true")
    for name, value in (("username", url.username), ("password", url.password)):
        if value:
            parts.append(f"{name}={_quoted(unquote(value), name)}")
    parts += [f"socket_timeout={SOCKET_SECONDS}", f"socket_connect_timeout={SOCKET_SECONDS}"]
    return ",".join([*parts, "retry=null"])


def _quoted(value: str, name: str) -> str:
    if "," in value:
        raise FeatureStoreError(f"embeddings.redis_url: Feast allows no comma in the {name}")
    return orjson.dumps(value).decode()  # Feast reads values as JSON: a password of digits too


def _shared_configuration(home: Path, redis_url: str) -> dict[str, Any]:
    configuration: dict[str, Any] = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text())
    configuration["registry"] = {"path": str(home / "feature_registry.db")}
    configuration["online_store"] = {
        "type": "redis",
        "connection_string": connection_string(redis_url),
    }
    return configuration


def _own_configuration(shared: dict[str, Any], key_ttl_seconds: int) -> "RepoConfig":
    from feast import RepoConfig

    # The registry is read once. Values never differ under one key, so no write has to look first
    # whether a newer one is there.
    own = {
        **shared,
        "registry": {**shared["registry"], "cache_ttl_seconds": 0},
        "online_store": {
            **shared["online_store"],
            "key_ttl_seconds": key_ttl_seconds,
            "skip_dedup": True,
        },
    }
    return RepoConfig(**own, repo_path=REPOSITORY)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
