"""What a model costs, as the configuration states it."""

from decimal import Decimal

from pydantic import Field, model_validator

from gateway.section import Section, Usd


class Price(Section):
    """USD per million tokens, or per million predictions.

    Attributes:
        input: tokens of the prompt.
        output: tokens of the answer.
        cached: tokens of the prompt that came from a cache; as input by default.
        reasoning: tokens of the answer that were reasoning; as output by default.
        predictions: rows that a tabular model answered.
    """

    input: Usd = Decimal(0)
    output: Usd = Decimal(0)
    cached: Usd | None = None
    reasoning: Usd | None = None
    predictions: Usd = Decimal(0)


class SelfHosted(Section):
    """A node's price and what it was measured to do: the price per token, or prediction, follows.

    Attributes:
        node_usd_per_hour: what one node costs, USD an hour.
        input_tokens_per_second: prompt tokens one busy node reads a second.
        output_tokens_per_second: tokens one busy node writes a second.
        predictions_per_second: rows one busy node answers a second.
    """

    node_usd_per_hour: Usd
    input_tokens_per_second: Decimal | None = Field(None, gt=0)
    output_tokens_per_second: Decimal | None = Field(None, gt=0)
    predictions_per_second: Decimal | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _states_a_rate(self) -> "SelfHosted":
        tokens = (self.input_tokens_per_second, self.output_tokens_per_second)
        if self.predictions_per_second is None and None in tokens:
            raise ValueError(
                "give input_tokens_per_second and output_tokens_per_second, or for a tabular "
                "model predictions_per_second"
            )
        return self
