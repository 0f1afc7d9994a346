"""A plugin of vLLM: LoRA on the CPU, each row of a batch with its own adapter, or with none.

vLLM 0.32 marks rows without an adapter by the index -1, and its CPU operators take that as "the
last slot": in a batch beside requests of an adapter, a request of the plain model is answered by
whatever adapter lies there (vllm-project/vllm#48421). An experiment of base against adapter then
compares the adapter with itself.

The operators here skip such rows. They also multiply all rows of an adapter at once, instead of
copying its matrices for every token.

vLLM loads this in each of its processes, by the entry point beside it (`VLLM_PLUGINS`). On a GPU
vLLM's own kernels are right, and nothing is changed.
"""

from collections.abc import Iterator

import torch

Rows = torch.Tensor | slice
NO_ADAPTER = -1


def shrink(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """`output = scaling * inputs A^T`, by each row's adapter; rows without one become 0."""
    output.zero_()
    for slot, rows in _adapters(slots):
        matrix = _matrix(weights, slot, output)
        output[rows, : matrix.shape[0]] = scaling * (inputs[rows].to(output.dtype) @ matrix.T)


def expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """Add `inputs B^T` to `output` by each row's adapter (or set it); others stay (or become 0)."""
    _expand(inputs, weights, output, slots, add_inputs)


def expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    *place: int,
) -> None:
    """`expand` on some columns of `output`; `place`: the first, their number, and `add_inputs`."""
    offset, size, *add = place
    _expand(inputs, weights, output[:, offset : offset + size], slots, not add or bool(add[0]))


def register() -> None:
    """Put the operators in the place of vLLM's, on a CPU. Again changes nothing."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in (lora_ops, torch_ops, punica_cpu):  # each has the names bound for itself
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice


def _expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    add_inputs: bool,
) -> None:
    if not add_inputs:
        output.zero_()
    for slot, rows in _adapters(slots):
        matrix = _matrix(weights, slot, output)
        width = min(matrix.shape[0], output.shape[1])
        output[rows, :width] += inputs[rows].to(output.dtype) @ matrix[:width].T


def _adapters(slots: torch.Tensor) -> Iterator[tuple[int, Rows]]:
    """Each adapter's slot in a batch, with its rows."""
    found = sorted(set(slots.tolist()))
    for slot in found:
        if slot != NO_ADAPTER:
            rows: Rows = slice(None) if len(found) == 1 else (slots == slot).nonzero()[:, 0]
            yield slot, rows


def _matrix(weights: torch.Tensor, slot: int, output: torch.Tensor) -> torch.Tensor:
    """A slot's matrix: (rank, inputs) to shrink, (outputs, rank) to expand."""
    matrix = weights[slot]
    return (matrix[0] if matrix.dim() == 3 else matrix).to(output.dtype)
