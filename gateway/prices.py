"""What tokens and predictions cost: versioned prices per model, exact decimals, one rounding a
request.

A price is USD per million of them with at most nine places. A request's cost is the exact sum in
whole numbers, rounded once to whole nano-USD, half to even. Each row of the log
keeps the cost and the version it was made with, so a new price never changes an old row.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.configuration import WILDCARD, Configuration, Model
from gateway.price_configuration import Price, SelfHosted
from gateway.usage import Usage

FEMTO_PER_NANO = 1_000_000
FEMTO_PER_RATE = 10**9  # USD per million tokens is 1e-6 USD, or 1e9 times 1e-15 USD, a token
MILLION = Decimal(1_000_000)
SECONDS_PER_HOUR = Decimal(3600)
RATE_PLACES = Decimal("1e-9")
UNPRICED = "unpriced"
HOSTED_PRICES = ("litellm", "model_prices_and_context_window_backup.json")


@dataclass(frozen=True, slots=True)
class Rates:
    """1e-15 USD per token or prediction (so a price with nine places is a whole number), and the
    version that identifies them."""

    input: int
    cached: int
    output: int
    reasoning: int
    version: str
    predictions: int = 0

    def cost(self, usage: Usage) -> int:
        """Nano-USD of a request. Cached tokens are part of input, reasoning of output."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        reasoning = min(usage.reasoning_tokens, usage.output_tokens)
        return whole_nano(
            (usage.input_tokens - cached) * self.input
            + cached * self.cached
            + (usage.output_tokens - reasoning) * self.output
            + reasoning * self.reasoning
        )

    def cost_of_predictions(self, rows: int) -> int:
        """Nano-USD of a request for the predictions of `rows`."""
        return whole_nano(rows * self.predictions)

    def saved(self, cached_tokens: int) -> int:
        """Nano-USD that `cached_tokens` would have cost beyond what they do."""
        return whole_nano(cached_tokens * (self.input - self.cached))


def whole_nano(femto: int) -> int:
    """1e-15 USD rounded to whole nano-USD, half to even."""
    nano, rest = divmod(femto, FEMTO_PER_NANO)
    if rest * 2 > FEMTO_PER_NANO or (rest * 2 == FEMTO_PER_NANO and nano % 2):
        nano += 1
    return nano


class PriceTable:
    """The rates of every configured model, resolved once per configuration.

    LiteLLM's table is only read where some model states no price of its own.
    """

    def __init__(self, configuration: Configuration):
        models = configuration.models
        wanted = any(model.price is None and model.self_hosted is None for model in models.values())
        hosted = load_hosted_prices() if wanted else {}
        self._rates = {
            alias: resolve(alias, model, hosted, provider=_provider(configuration, model))
            for alias, model in models.items()
        }
        self._hosted = hosted if self._falls_to_table(models.get(WILDCARD)) else {}

    def rates(self, alias: str, requested: str) -> Rates:
        """Rates of a configured alias; for the wildcard, the table's price of the requested."""
        if alias == WILDCARD and requested in self._hosted:
            return rates_of(self._hosted[requested], origin="litellm")
        return self._rates[alias]

    @staticmethod
    def _falls_to_table(wildcard: Model | None) -> bool:
        return wildcard is not None and wildcard.price is None and wildcard.self_hosted is None


def resolve(
    alias: str, model: Model, hosted: Mapping[str, Price], *, provider: str | None = None
) -> Rates:
    """The rates of one model: stated, derived from a node, or LiteLLM's; else zero, and said so."""
    if model.price is not None:
        return rates_of(model.price, origin="stated")
    if model.self_hosted is not None:
        return rates_of(derive(model.self_hosted), origin="self-hosted")
    for name in (provider, model.model, alias):
        if name and name in hosted:
            return rates_of(hosted[name], origin="litellm")
    return rates_of(Price(), origin=UNPRICED)


def derive(node: SelfHosted) -> Price:
    """USD per million of what a model on a node of one's own does: its hour over its throughput.

    Cached tokens cost the node nothing to speak of, and are free.
    """
    per_second = node.node_usd_per_hour / SECONDS_PER_HOUR

    def per_million(rate: Decimal | None) -> Decimal:
        return Decimal(0) if rate is None else (per_second / rate * MILLION).quantize(RATE_PLACES)

    return Price(
        input=per_million(node.input_tokens_per_second),
        output=per_million(node.output_tokens_per_second),
        cached=Decimal(0),
        predictions=per_million(node.predictions_per_second),
    )


def rates_of(price: Price, *, origin: str) -> Rates:
    """The rates of a price; the version is its origin and a digest of its numbers."""
    parts = (
        price.input,
        price.input if price.cached is None else price.cached,
        price.output,
        price.output if price.reasoning is None else price.reasoning,
    )
    stated = (*parts, price.predictions) if price.predictions else parts
    text = "/".join(str(part.normalize()) for part in stated)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    given, cached, written, reasoning = (int(part * FEMTO_PER_RATE) for part in parts)
    return Rates(
        given,
        cached,
        written,
        reasoning,
        version=f"{origin}-{digest}",
        predictions=int(price.predictions * FEMTO_PER_RATE),
    )


def load_hosted_prices() -> Mapping[str, Price]:
    """LiteLLM's price table, read as a file (nothing of LiteLLM runs); empty if not installed."""
    found = importlib.util.find_spec(HOSTED_PRICES[0])
    if found is None or found.origin is None:
        return {}
    path = Path(found.origin).with_name(HOSTED_PRICES[1])
    if not path.exists():
        return {}
    table: dict[str, Any] = json.loads(path.read_text(), parse_float=Decimal)
    return {name: _hosted_price(entry) for name, entry in table.items() if _states_tokens(entry)}


def _states_tokens(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("input_cost_per_token"), Decimal | int)


def _hosted_price(entry: Mapping[str, Any]) -> Price:
    def per_million(name: str) -> Decimal | None:
        value = entry.get(name)
        return None if value is None else (Decimal(value) * MILLION).quantize(RATE_PLACES)

    return Price(
        input=per_million("input_cost_per_token") or Decimal(0),
        output=per_million("output_cost_per_token") or Decimal(0),
        cached=per_million("cache_read_input_token_cost"),
        reasoning=per_million("output_cost_per_reasoning_token"),
    )


def _provider(configuration: Configuration, model: Model) -> str | None:
    """LiteLLM's own name for a model that its process serves."""
    if configuration.litellm is None or model.model is None:
        return None
    served = configuration.litellm.models.get(model.model)
    return served.model if served else None
