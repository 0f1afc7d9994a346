"""From the model a caller names to the target that answers, within what the key may use."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway.configuration import WILDCARD, Configuration, Model, Upstream
from gateway.errors import ModelNotFound, Unavailable
from gateway.keys import Key
from gateway.prices import PriceTable, Rates
from gateway.records import Status
from gateway.variants import Split, Variant


class VariantUnavailable(Unavailable):
    """503: a split sends the request to an alias that the configuration does not have. The log has
    it as `failed`: it is no fault of the caller's, and the arm did not answer."""

    code = "variant_not_configured"
    log_status = Status.FAILED

    def __init__(self, alias: str, variant: Variant):
        super().__init__(
            f"The split of {alias!r} gives this request to its variant {variant.name!r}, which the "
            f"model {variant.target!r} answers; whoever runs this gateway has to configure it, or "
            "change the split."
        )


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

    def can_answer(self, variant: Variant) -> bool:
        """Whether the configuration lists the alias that `variant` sends requests to, if any."""
        target = variant.target
        return target is None or (target in self._targets and target != WILDCARD)

    def varied(self, asked: Target, split: Split, variant: Variant) -> Target:
        """Where a request for `asked` goes under a variant of its split.

        The rates are those of the alias that answers; `alias` stays the one that was asked for. No
        key is asked: it was allowed that alias. The split of another alias is not followed.

        Raises:
            VariantUnavailable: the configuration has no such target.
        """
        target = asked
        if variant.target is not None:
            if not self.can_answer(variant):
                raise VariantUnavailable(split.alias, variant)
            target = replace(self._targets[variant.target], alias=asked.alias)
        if variant.adapter is not None:
            target = replace(target, model=variant.adapter)
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
