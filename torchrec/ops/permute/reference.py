"""Permutations of keys in plain PyTorch: the specification, right on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops.jagged.reference import source_rows


def bags_of_keys(strides: list[int], order: list[int], device: torch.device) -> Tensor:
    """List the positions of the bags of the keys in ``order``, key after key."""
    starts = [0]
    for stride in strides:
        starts.append(starts[-1] + stride)
    pieces = [torch.arange(starts[i], starts[i + 1], device=device) for i in order]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64, device=device)


def permute_jagged(
    lengths: Tensor, rows: list[Tensor], strides: list[int], order: list[int], total: int
) -> tuple[Tensor, list[Tensor]]:
    """Take the keys in ``order``: their lengths, and their part of every tensor in ``rows``."""
    index, taken = source_rows(lengths, bags_of_keys(strides, order, lengths.device), total)
    return taken, [row.index_select(0, index) for row in rows]
