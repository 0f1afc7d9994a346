"""What was observed of the users of an experiment, made up."""

from typing import Any

from pipelines.observations import Observed

GOOD, BAD = [1.0] * 27 + [0.0] * 3, [0.0] * 28 + [1.0] * 2


def observed(champion: list[float], challenger: list[float], **fields: Any) -> Observed:
    """So many values, and as many assigned users unless `assigned` says otherwise."""
    values = {"champion": champion, "challenger": challenger}
    fields.setdefault("assigned", {arm: len(given) for arm, given in values.items()})
    return Observed(values=values, **fields)
