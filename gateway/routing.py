"""From the model a caller names to the target that answers, within what the key may use."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.configuration import WILDCARD, Configuration, Model, Upstream
from gateway.errors import ModelNotFound, Unavailable
from gateway.keys import Key
from gateway.prices import PriceTable, Rates
from gateway.variants import Variant


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: an upstream, the name it knows the model by, and the rates.

    `alias` is the configured name (`*` for one that only the wildcard covers), fit for a metric's
    label; `name` is `upstream/model`, as answers and the log show it.
    """

    alias: str
    upstream_name: str
    upstream: Upstream
    model: str
    rates: Rates
    settings: Model
    credential: str | None

    @property
    def name(self) -> str:
        return f"{self.upstream_name}/{self.model}"


class Routes:
    """The models of one configuration. Immutable: a reload makes new ones."""

    def __init__(
        self, configuration: Configuration, prices: PriceTable, secrets: Mapping[str, str]
    ):
        self._models = configuration.models
        self._upstreams = configuration.upstreams
        self._prices = prices
        self._secrets = secrets
        self._targets = {alias: self._target(alias, alias) for alias in configuration.models}

    def resolve(self, model: str, key: Key) -> Target:
        """The target of `model`; raises ModelNotFound if there is none or the key may not."""
        if not key.may_use(model):
            raise ModelNotFound(model)
        target = self._targets.get(model)
        if target is not None and model != WILDCARD:
            return target
        if WILDCARD not in self._models or model == WILDCARD:
            raise ModelNotFound(model)
        return self._target(WILDCARD, model)

    def variant_target(self, alias: str, variant: Variant) -> Target:
        """The target of a variant of `alias`. The key was allowed the alias: it is not asked again.

        Raises Unavailable where the configuration no longer has it.
        """
        target = self._targets.get(variant.target or alias)
        if target is None:
            raise Unavailable(
                f"The variant {variant.name!r} of {alias!r} is answered by {variant.target!r}, "
                "which is not configured.",
                code="variant_not_configured",
            )
        return target

    def aliases(self, key: Key) -> list[str]:
        """The configured models that the key may use, without the wildcard."""
        return [name for name in self._models if name != WILDCARD and key.may_use(name)]

    def wildcard(self) -> Target | None:
        """The target of models that are not listed, if the configuration has one."""
        return self._targets.get(WILDCARD)

    def _target(self, alias: str, requested: str) -> Target:
        model = self._models[alias]
        upstream = self._upstreams[model.upstream]
        return Target(
            alias=alias,
            upstream_name=model.upstream,
            upstream=upstream,
            model=model.model or requested,
            rates=self._prices.rates(alias, requested),
            settings=model,
            credential=self._secrets.get(upstream.api_key_env) if upstream.api_key_env else None,
        )


def cache_salt(secret: bytes, tenant: str) -> str:
    """Keeps tenants apart in an engine's prefix cache, whose timing would tell (vLLM #16016)."""
    return hmac.digest(secret, b"cache-salt:" + tenant.encode(), hashlib.sha256).hex()[:32]
