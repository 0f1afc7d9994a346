"""Money: exact, rounded once, versioned."""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.configuration import Configuration, parse_configuration
from gateway.price_configuration import Price, SelfHosted
from gateway.prices import PriceTable, derive, load_hosted_prices, rates_of
from gateway.records import usd_text
from gateway.usage import Usage, estimate, read_usage

rate = st.decimals(min_value=0, max_value=10_000, places=9)
count = st.integers(0, 10_000_000)


@given(rate, rate, rate, rate, count, count, count, count)
def test_a_cost_is_the_exact_sum_rounded_once(given_, cached, output, reasoning, i, c, o, r):
    rates = rates_of(
        Price(input=given_, cached=cached, output=output, reasoning=reasoning), origin="t"
    )
    c, r = min(c, i), min(r, o)
    exact = sum(
        Fraction(price) * 1000 * tokens
        for price, tokens in ((given_, i - c), (cached, c), (output, o - r), (reasoning, r))
    )
    cost = rates.cost(Usage(i, o, c, r))
    assert abs(cost - exact) <= Fraction(1, 2)
    if exact.denominator == 1:
        assert cost == exact


def test_half_a_nano_dollar_goes_to_the_even_side():
    rates = rates_of(Price(input=Decimal("0.0005")), origin="t")  # half a nano-USD a token
    assert [rates.cost(Usage(n, 0)) for n in (1, 2, 3)] == [0, 1, 2]
    assert Decimal("0.5").to_integral_value(ROUND_HALF_EVEN) == 0


@given(st.integers(0, 10**15))
def test_usd_text_is_exact(nano):
    assert Decimal(usd_text(nano)) * 10**9 == nano


def test_a_new_price_has_a_new_version_and_the_same_price_the_same():
    one, two = Price(input=Decimal(1)), Price(input=Decimal("1.0"))
    assert rates_of(one, origin="x").version == rates_of(two, origin="x").version
    assert (
        rates_of(Price(input=Decimal(2)), origin="x").version != rates_of(one, origin="x").version
    )


def test_a_node_of_ones_own_costs_its_hour_over_its_throughput():
    price = derive(
        SelfHosted(
            node_usd_per_hour=Decimal("3.6"),
            input_tokens_per_second=Decimal(1000),
            output_tokens_per_second=Decimal(100),
        )
    )
    assert (price.input, price.output, price.cached) == (Decimal(1), Decimal(10), Decimal(0))


def test_predictions_are_priced_by_the_row():
    stated = rates_of(Price(predictions=Decimal("0.185")), origin="stated")
    assert [stated.cost_of_predictions(rows) for rows in (1, 2, 10_000)] == [185, 370, 1_850_000]
    assert stated.cost(Usage(1000, 1000)) == 0
    assert stated.version != rates_of(Price(), origin="stated").version
    node = SelfHosted(node_usd_per_hour=Decimal("0.54"), predictions_per_second=Decimal(150))
    assert rates_of(derive(node), origin="self-hosted").cost_of_predictions(3) == 3000
    with pytest.raises(ValidationError, match="predictions_per_second"):
        SelfHosted(node_usd_per_hour=Decimal(1), input_tokens_per_second=Decimal(1))


def configured(model: str) -> Configuration:
    return parse_configuration(f"upstreams: {{u: {{url: 'http://x/v1'}}}}\nmodels: {{{model}}}")


def test_hosted_models_default_to_litellms_table():
    hosted = load_hosted_prices()
    assert hosted["gpt-4o-mini"].input == Decimal("0.15")
    table = PriceTable(configured("'*': {upstream: u}, mine: {upstream: u, model: gpt-4o-mini}"))
    assert table.rates("mine", "mine").cost(Usage(1000, 0)) == 150_000
    assert table.rates("*", "gpt-4o-mini").version.startswith("litellm-")
    assert table.rates("*", "nobody-knows").version.startswith("unpriced-")


@pytest.mark.parametrize(
    "usage",
    [
        None, {}, {"prompt_tokens": "3"}, {"prompt_tokens": True}, 5,
        {"prompt_tokens": 2**64, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": None},
        {"prompt_tokens": 1, "completion_tokens": -1},
    ],
)  # fmt: skip
def test_what_is_no_usage_is_none(usage):
    assert read_usage(usage) is None


@given(st.text(), st.text())
def test_an_estimate_is_four_bytes_a_token(prompt, answer):
    usage = estimate({"messages": [{"role": "user", "content": prompt}]}, answer, None)
    assert usage.source == "estimated"
    assert usage.input_tokens == -(-len(prompt.encode()) // 4)
    assert usage.output_tokens == -(-len(answer.encode()) // 4)
