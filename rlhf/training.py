"""What a training is asked for, and how it can fail. Plain values: nothing heavy is imported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


class EmptyTraining(ValueError):
    """There is no row to train on; the message says why."""


class Diverged(RuntimeError):
    """The training ran away: a loss or a gradient is no number. Nothing of it is kept.

    Attributes:
        step: the step that it happened in, from 1.
        last_good_loss: of the step before, nats a token; None if there was none.
    """

    def __init__(self, step: int, last_good_loss: float | None, loss: float, gradient: float):
        self.step = step
        self.last_good_loss = last_good_loss
        good = (
            "no loss before it" if last_good_loss is None else f"loss before: {last_good_loss:.4f}"
        )
        super().__init__(
            f"the training diverged in step {step}: loss {loss}, gradient {gradient} ({good}); "
            "a lower learning_rate or a longer warm-up (warmup_steps) helps"
        )


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """How an adapter is trained.

    Attributes:
        rank, alpha: of the matrices; what they add is scaled by alpha / rank.
        target_modules: which layers get them; PEFT's names.
        learning_rate: the highest one: it rises over `warmup_steps`, then falls evenly to none.
        max_length: tokens of prompt and answer together; longer rows are left out.
        checkpoint_steps: after so many steps each there is a checkpoint to go on from.
        threads: of the processor; None leaves that to torch (all cores).
    """

    rank: int = 8
    alpha: int = 16
    target_modules: str | Sequence[str] = "all-linear"
    learning_rate: float = 5e-4
    epochs: int = 1
    batch_size: int = 8
    max_length: int = 256
    warmup_steps: int = 2
    seed: int = 0
    checkpoint_steps: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {"rank": 1, "alpha": 1, "epochs": 1, "batch_size": 1, "max_length": 2}
        least |= {"warmup_steps": 0, "seed": 0, "checkpoint_steps": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: {getattr(self, name)}: must be at least {minimum}")
        if self.learning_rate <= 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate: {self.learning_rate}: must be a number above 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: {self.threads}: must be at least 1, or none")

    def steps(self, rows: int) -> int:
        """Steps of a training on so many rows."""
        return math.ceil(rows / self.batch_size) * self.epochs

    def rate(self, done: int, steps: int) -> float:
        """Share of the learning rate in the step after `done` ones. No step is without effect."""
        warmup = min(self.warmup_steps, steps - 1)
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return max(0.0, (steps - done) / (steps - warmup))
