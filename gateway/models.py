"""`GET /v1/models`: the models that a key may use, in OpenAI's shape."""

from typing import Any

import orjson

from gateway.errors import ModelNotFound, UpstreamBroken
from gateway.keys import Key
from gateway.routing import Routes, Target
from gateway.upstream import Transport

OWNER = "llmops"


async def list_models(routes: Routes, key: Key, transport: Transport) -> dict[str, Any]:
    """The configured aliases and, where there is a wildcard, what its upstream lists."""
    names = routes.aliases(key)
    wildcard = routes.wildcard()
    if wildcard is not None:
        listed = await _upstream_models(wildcard, transport)
        names += [name for name in listed if name not in names and key.may_use(name)]
    return {"object": "list", "data": [_model(name) for name in names]}


async def one_model(name: str, routes: Routes, key: Key, transport: Transport) -> dict[str, Any]:
    """One of them; raises ModelNotFound."""
    listed = await list_models(routes, key, transport)
    if name not in {model["id"] for model in listed["data"]}:
        raise ModelNotFound(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


async def _upstream_models(target: Target, transport: Transport) -> list[str]:
    headers = {"authorization": f"Bearer {target.credential}"} if target.credential else {}
    status, body = await transport.get(f"{target.upstream.url.rstrip('/')}/models", headers)
    try:
        return [str(model["id"]) for model in orjson.loads(body)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UpstreamBroken(f"The upstream does not list its models ({status}).") from error
