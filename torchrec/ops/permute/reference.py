"""Permutations of keys in plain PyTorch: the specification, right on every device."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from torchrec.ops.jagged.reference import require_total, source_rows


def check_order(order: list[int], keys: int) -> None:
    """Refuse positions that are those of no key."""
    if order and not (min(order) >= 0 and max(order) < keys):
        raise IndexError(f"`order` should hold positions in [0, {keys}). Received {order}.")


def bags_of_keys(strides: list[int], order: list[int], device: torch.device) -> Tensor:
    """List the positions of the bags of the keys in ``order``, key after key."""
    starts = list(accumulate(strides, initial=0))
    pieces = [torch.arange(starts[i], starts[i + 1], device=device) for i in order]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64, device=device)


def permute_jagged(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: list[int],
    order: list[int],
    total: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the keys in ``order``: their values, weights (an empty tensor if there are none) and lengths."""
    check_order(order, len(strides))
    bags = bags_of_keys(strides, order, lengths.device)
    require_total(lengths.index_select(0, bags), total)
    index, taken = source_rows(lengths, bags, total)
    out = values.new_empty(0) if weights is None else weights.index_select(0, index)
    return values.index_select(0, index), out, taken


def regroup(inputs: list[Tensor], pieces: list[int], counts: list[int]) -> list[Tensor]:
    """Join ``counts[g]`` pieces of the inputs' columns for each output g.

    ``pieces`` holds (input, first column, columns) one behind the other; input -1 stands for zeros.
    """
    if not inputs:
        raise ValueError("`inputs` should hold one tensor or more. Received none.")
    first = inputs[0]
    for tensor in inputs:
        if tensor.dim() != 2 or tensor.size(0) != first.size(0) or tensor.dtype != first.dtype:
            raise ValueError(
                f"`inputs` should be two-dimensional tensors of {first.size(0)} rows and "
                f"{first.dtype}, as the first. Received {list(tensor.shape)} of {tensor.dtype}."
            )
    outputs = []
    at = 0
    for count in counts:
        parts = []
        for i in range(at, at + 3 * count, 3):
            source, start, width = pieces[i : i + 3]
            if source < 0:
                parts.append(inputs[0].new_zeros((inputs[0].size(0), width)))
            else:
                parts.append(inputs[source].narrow(1, start, width))
        at += 3 * count
        outputs.append(
            torch.cat(parts, 1) if parts else inputs[0].new_empty((inputs[0].size(0), 0))
        )
    return outputs
