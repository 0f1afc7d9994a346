"""Variants share an alias's traffic: what an arm is, and which arm a unit is in.

A unit is whoever sticks to an arm: the request's user, else its episode, else its key, within a
tenant. It is the unit of assignment and the unit of analysis. Assignment is a keyed hash, so it
needs no memory, is the same in every worker, and cannot be steered by choosing an id.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HASH_BYTES = 8
HASH_SPACE = 1 << (8 * HASH_BYTES)
PROMPT_SPLIT = "prompt:"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer an alias's requests; one record for model, adapter and prompt.

    Attributes:
        name: unique among the arms of a split, such as `champion`.
        target: another configured alias that answers; None: the alias itself.
        adapter: name under which the engine serves a LoRA adapter; None: the plain model.
        prompt_version: version of the prompt; None: the one that the request resolves to.
        parameters: fields that are put into the request's body, such as `temperature`, in place
            of the caller's own: else the arm would not be what it says it is.
    """

    name: str
    target: str | None = None
    adapter: str | None = None
    prompt_version: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arm:
    """A variant and its share of the units, as a weight relative to the other arms'."""

    variant: Variant
    weight: float


@dataclass(frozen=True, slots=True)
class Split:
    """How an alias's traffic is shared. One arm: everybody gets that variant.

    Attributes:
        alias: the model's public name; or `prompt:` and a prompt's name, where the arms are
            versions of that prompt.
        arms: at least one; at least one weight is above zero. Their order matters to stickiness:
            as weights move, units cross only the borders that move.
        experiment_id: the experiment that wrote it, or None.
        salt: key of the assignment, hex; a new experiment takes a new one.
    """

    alias: str
    arms: tuple[Arm, ...]
    experiment_id: str | None
    salt: str

    @property
    def prompt(self) -> str | None:
        """The prompt whose versions its arms are; None: it shares a model's traffic."""
        return (
            self.alias.removeprefix(PROMPT_SPLIT) if self.alias.startswith(PROMPT_SPLIT) else None
        )

    @property
    def retargets(self) -> bool:
        """Whether another alias answers some units: only then does it concern embeddings."""
        return any(arm.variant.target is not None for arm in self.arms)

    def choose(self, tenant: str, unit: str) -> Variant:
        """The variant of `unit`; the same every time while arms, weights and salt are the same."""
        if len(self.arms) == 1:
            return self.arms[0].variant
        name = f"{len(tenant)}:{tenant}:{unit}".encode()
        digest = hmac.digest(bytes.fromhex(self.salt), name, hashlib.sha256)[:HASH_BYTES]
        point = int.from_bytes(digest, "big") / HASH_SPACE * sum(arm.weight for arm in self.arms)
        for arm in self.arms:
            point -= arm.weight
            if point < 0:
                return arm.variant
        return next(arm.variant for arm in reversed(self.arms) if arm.weight > 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON and the audit trail."""
        return asdict(self)


def unit_of(user: str | None, episode_id: str | None, key_id: str) -> str:
    """Who sticks to an arm: the request's user, else its episode, else its key; empty is none."""
    return user or episode_id or key_id
