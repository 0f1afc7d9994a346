"""What every section of a YAML file is made of: frozen, and an unknown key is a mistake."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _seconds(value: Any) -> Any:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("a time span such as 30s, 15m, 6h or 7d is wanted")
    return float(found[1]) * _UNITS[found[2]]


Usd = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=9)]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\s\x00-\x1f]+$")]
Span = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]  # `6h`, as seconds
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")]


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)
