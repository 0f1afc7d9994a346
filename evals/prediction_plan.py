"""How an alias's predictions are watched: `predictions` of an entry of `drift.subjects`."""

from pydantic import Field

from gateway.section import Name, Section, Span

DAY = 86_400.0


class Predictions(Section):
    """What is known of the predictions beside the log.

    Attributes:
        label: feedback metric, true or false, that says what came of a prediction; by default
            what the champion's reference calls it.
        label_after: predictions that are younger are not judged, labelled or not: what is known
            early differs from the rest.
        block: predictions within so long are alike; whole blocks are compared.
        blocks: newest blocks that are in a window, however often it is looked at.
        slas: limits of service levels for this model, before those of `drift.slas`.
    """

    label: Name | None = None
    label_after: Span = DAY
    block: Span = DAY
    blocks: int = Field(7, ge=1, le=366)
    slas: dict[str, float | None] = {}
