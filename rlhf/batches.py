"""A batch of rows as tensors, and the loss on their answers.

The prompt is not learnt, so what the model would say there is never computed: with a large
vocabulary the last layer is a quarter of the work, and most positions belong to prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.rows import Row

IGNORED = -100  # no target: padding, or a prompt beside the answer of a longer row


@dataclass(frozen=True, slots=True)
class Collator:
    """Rows to tensors, padded on the right.

    `positions` are those after which any row has a token of its answer, and `targets` these
    tokens: (rows, positions), IGNORED where a row has none.
    """

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The tensors of a batch."""
        longest = max(len(row.tokens) for row in rows)
        first = min(row.answer_at for row in rows)
        tokens = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        targets = torch.full((len(rows), longest), IGNORED)
        for line, row in enumerate(rows):
            length = len(row.tokens)
            tokens[line, :length] = torch.tensor(row.tokens)
            mask[line, :length] = 1
            targets[line, row.answer_at : length] = torch.tensor(row.tokens[row.answer_at :])
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "positions": torch.arange(first - 1, longest - 1),
            "targets": targets[:, first:],
        }


def answer_loss(
    model: Any, batch: Mapping[str, torch.Tensor], precision: torch.dtype
) -> torch.Tensor:
    """Mean cross entropy over the tokens of the answers, nats a token.

    The matrices of the adapter are float32 and are used in `precision`, the base model's own.
    """
    device = batch["input_ids"].device.type
    half = precision != torch.float32
    with torch.autocast(device, dtype=precision if half else torch.bfloat16, enabled=half):
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            logits_to_keep=batch["positions"],
            use_cache=False,
        ).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED
    )
