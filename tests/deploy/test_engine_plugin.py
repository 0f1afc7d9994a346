"""The engine's LoRA operators: every row by its own adapter, rows without one untouched."""

import importlib.metadata
import re

import torch
from hypothesis import given
from hypothesis import strategies as st

from deploy.engine_plugin import llmops_lora
from deploy.parts import ENGINE_PLUGIN

SLOTS, INPUTS, RANK, OUTPUTS = 3, 6, 2, 5
rows = st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12)


def by_row(inputs: torch.Tensor, weights: torch.Tensor, slots: list[int]) -> torch.Tensor:
    """What each row's own matrix makes of it, one after another."""
    width = weights.shape[-2]
    made = [weights[slot].reshape(width, -1) @ row if slot >= 0 else torch.zeros(width)
            for row, slot in zip(inputs, slots, strict=True)]  # fmt: skip
    return torch.stack(made)


@given(rows, st.booleans(), st.integers(0, 2**31))
def test_rows_have_their_own_adapter_or_none(slots: list[int], add: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(slots), INPUTS, generator=draw)
    down = torch.randn(SLOTS, 1, RANK, INPUTS, generator=draw)
    up = torch.randn(SLOTS, 1, OUTPUTS, RANK, generator=draw)
    before = torch.randn(len(slots), OUTPUTS + 4, generator=draw)
    chosen = torch.tensor(slots)

    low = torch.full((len(slots), RANK), torch.nan)
    llmops_lora.shrink(inputs, down, low, chosen, 0.5)
    assert torch.allclose(low, 0.5 * by_row(inputs, down, slots), atol=1e-5)

    output = before.clone()
    llmops_lora.expand_slice(low, up, output, chosen, 2, OUTPUTS, add)
    wanted = by_row(low, up, slots) + (before[:, 2 : 2 + OUTPUTS] if add else 0)
    assert torch.allclose(output[:, 2 : 2 + OUTPUTS], wanted, atol=1e-5)
    assert torch.equal(output[:, :2], before[:, :2]) and torch.equal(output[:, -2:], before[:, -2:])

    whole = before[:, :OUTPUTS].clone()
    llmops_lora.expand(low, up[:, 0], whole, chosen)
    assert torch.allclose(whole, before[:, :OUTPUTS] + by_row(low, up, slots), atol=1e-5)


def test_without_any_adapter_nothing_is_computed() -> None:
    output = torch.ones(4, OUTPUTS)
    llmops_lora.expand(torch.ones(4, RANK), torch.full((SLOTS, OUTPUTS, RANK), torch.nan), output,
                       torch.full((4,), -1))  # fmt: skip
    assert torch.equal(output, torch.ones(4, OUTPUTS))


def test_the_folder_is_a_distribution_with_the_entry_point() -> None:
    (found,) = importlib.metadata.distributions(path=[str(ENGINE_PLUGIN)])
    (point,) = found.entry_points.select(group="vllm.general_plugins")
    assert point.name == "llmops_lora"
    assert re.fullmatch(r"llmops_lora:\w+", point.value)
    assert callable(getattr(llmops_lora, point.attr))
