"""Permutations of keys."""

from __future__ import annotations

from torch import Tensor

from torchrec.ops.permute import reference


def permute_jagged(
    lengths: Tensor, rows: list[Tensor], strides: list[int], order: list[int], total: int
) -> tuple[Tensor, list[Tensor]]:
    return reference.permute_jagged(lengths, rows, strides, order, total)
